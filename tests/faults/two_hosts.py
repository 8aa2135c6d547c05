"""Two hosts on one machine: network namespaces joined by a cable, each with a name and an sshd of its own.

The processes share the machine's files and process numbers, but not its network, its host name or its loopback.
Keys, configuration and port belong to the test; no account and no file outside its folder is touched.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

PORT = 2222
INTERFACE = "chorus0"  # the same on both hosts, as gloo wants it


def missing() -> str | None:
    """Return why this machine cannot be two hosts; None when it can."""
    for program, package in [("ip", "iproute2"), ("unshare", "util-linux"), ("sshd", "openssh-server")]:
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
            return f"there is no {program}; install {package}, as `make two-hosts` does"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = subprocess.run(["ip", "netns", "add", "chorus-probe"], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", "chorus-probe"], capture_output=True)
    return f"this machine forbids network namespaces: {probe.stderr.strip()}" if probe.returncode else None


class TwoHosts:
    """The hosts 10.77.0.1 and 10.77.0.2, named chorus-a and chorus-b."""

    ADDRESSES = ("10.77.0.1", "10.77.0.2")

    def __init__(self, folder: Path):
        self.folder = folder
        self.spaces = tuple(f"chorus-{os.getpid()}-{letter}" for letter in "ab")
        self.config = folder / "ssh_config"
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "TwoHosts":
        try:
            self._cable()
            self._keys()
            for number in range(2):
                self._daemons.append(self._daemon(number))
            for address in self.ADDRESSES:
                self._wait_for(address)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for daemon in self._daemons:
            daemon.terminate()
            daemon.wait()
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)

    def on(self, number: int, command: list[str]) -> list[str]:
        """Return a command that runs another one on a host."""
        name = f"chorus-{'ab'[number]}"
        inside = ["unshare", "--uts", "sh", "-c", f'hostname {name} && exec "$@"', "sh", *command]
        return ["ip", "netns", "exec", self.spaces[number], *inside]

    def cut(self, number: int) -> None:
        """Pull the cable out of a host."""
        _run("ip", "-n", self.spaces[number], "link", "set", INTERFACE, "down")

    def mend(self, number: int) -> None:
        """Put it back."""
        _run("ip", "-n", self.spaces[number], "link", "set", INTERFACE, "up")

    def _cable(self) -> None:
        a, b = self.spaces
        _run("ip", "netns", "add", a)
        _run("ip", "netns", "add", b)
        _run("ip", "-n", a, "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", b)
        for space, address in zip(self.spaces, self.ADDRESSES, strict=True):
            _run("ip", "-n", space, "address", "add", f"{address}/24", "dev", INTERFACE)
            _run("ip", "-n", space, "link", "set", INTERFACE, "up")
            _run("ip", "-n", space, "link", "set", "lo", "up")

    def _keys(self) -> None:
        for key in ("host", "user"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key))
        shutil.copy(self.folder / "user.pub", self.folder / "authorized")
        public = (self.folder / "host.pub").read_text()
        known = "".join(f"[{address}]:{PORT} {public}" for address in self.ADDRESSES)
        (self.folder / "known").write_text(known)
        self.config.write_text(
            f"Port {PORT}\nUser root\nIdentityFile {self.folder}/user\nIdentitiesOnly yes\n"
            f"UserKnownHostsFile {self.folder}/known\nStrictHostKeyChecking yes\n"
        )

    def _daemon(self, number: int) -> subprocess.Popen:
        config = self.folder / f"sshd_config_{number}"
        config.write_text(
            f"Port {PORT}\nListenAddress {self.ADDRESSES[number]}\nHostKey {self.folder}/host\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nPasswordAuthentication no\nUsePAM no\nStrictModes no\n"
            f"PermitRootLogin prohibit-password\nPidFile none\n"
        )
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd gives up its rights
        sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        assert sshd
        with (self.folder / f"sshd-{number}.log").open("wb") as log:
            return subprocess.Popen(self.on(number, [sshd, "-D", "-e", "-f", str(config)]), stderr=log)

    def _wait_for(self, address: str) -> None:
        until = time.monotonic() + 30
        while subprocess.run(
            self.on(0, ["ssh", "-F", str(self.config), address, "true"]), capture_output=True
        ).returncode:
            assert time.monotonic() < until, [log.read_text() for log in self.folder.glob("sshd-*.log")]
            time.sleep(0.2)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
