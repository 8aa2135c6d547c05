"""A SLURM cluster of two nodes on this machine: munged, slurmctld and two slurmd of a test's own, in its own folder."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
WAIT_S = 60.0


def missing() -> str | None:
    """Return why this machine cannot be a cluster; None when it can."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    if absent:
        return f"there is no {absent[0]}; install slurmctld, slurmd, slurm-client and munge, as `make slurm` does"
    return None if os.geteuid() == 0 else "the daemons of SLURM need root"


class Cluster:
    """The nodes n1 and n2. `environment` is what its commands need."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "Cluster":
        try:
            self._munge()
            self._configure()
            self._start("slurmctld", "-D", "-c")
            for node in ("n1", "n2"):
                self._start("slurmd", "-D", "-N", node)
            until = time.monotonic() + WAIT_S
            while self.ask("sinfo", "-h", "-o", "%T %D") != "idle 2":
                assert time.monotonic() < until, [log.read_text()[-2000:] for log in self.folder.glob("*.log")]
                time.sleep(0.5)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def ask(self, *command: str) -> str:
        """Return what a command of SLURM prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return done.stdout.strip()

    def _munge(self) -> None:
        (self.folder / "key").write_bytes(os.urandom(1024))
        (self.folder / "key").chmod(0o400)
        files = {"socket": "munge", "key-file": "key", "pid-file": "munge.pid", "log-file": "munge.log"}
        options = [f"--{name}={self.folder / file}" for name, file in files.items()]
        self._start("munged", "--foreground", "--force", f"--seed-file={self.folder / 'seed'}", *options)

    def _configure(self) -> None:
        ports = _free_ports(4)
        lines = {
            "ClusterName": "one",
            "SlurmctldHost": socket.gethostname() + "(127.0.0.1)",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder / 'munge'}",
            "CredType": "cred/munge",
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "SlurmctldPort": ports[0],
            "SlurmdPort": ports[1],
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": self.folder / "spool-%n",
            "SlurmctldPidFile": self.folder / "slurmctld.pid",
            "SlurmdPidFile": self.folder / "slurmd-%n.pid",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SelectType": "select/cons_tres",
            "ReturnToService": "2",
            "MpiDefault": "none",
            "JobRequeue": "1",
        }
        for folder in ("state", "spool-n1", "spool-n2"):
            (self.folder / folder).mkdir()
        nodes = f"NodeName=n[1-2] NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port=[{ports[2]}-{ports[3]}]"
        (self.folder / "slurm.conf").write_text(
            "".join(f"{name}={value}\n" for name, value in lines.items())
            + f"{nodes} CPUs=2 RealMemory=1000\nPartitionName=all Nodes=ALL Default=YES State=UP\n"
        )

    def _start(self, program: str, *options: str) -> None:
        path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert path
        with (self.folder / f"{program}-{len(self._daemons)}.log").open("wb") as log:
            self._daemons.append(
                subprocess.Popen([path, *options], env=self.environment, stdout=log, stderr=log, cwd=self.folder)
            )
        time.sleep(1)


def _free_ports(number: int) -> list[int]:
    """Return neighbouring ports that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        first = listener.getsockname()[1]
    return list(range(first, first + number))
