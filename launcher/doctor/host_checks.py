"""The hosts of a hostfile, examined over the same ssh that a run would use: what is wrong, and what mends it."""

import json
import os
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.doctor import host_probe
from launcher.processes import agent_command
from launcher.processes.remote_answer import last_words, read_answer
from launcher.processes.ssh import remote_line, ssh_command
from launcher.recipe import ClusterConfig
from launcher.recipe.hostfile import Host, Topology

# What must be the same on all hosts.
SAME = ("python", *host_probe.LIBRARIES, "chorus", "accelerator")
MOST_CLOCK_DIFFERENCE_S = 2.0
LEAST_FREE_BYTES = 5 << 30
ANSWER_S = 120.0


class HostChecks:
    """What the hosts of a run report; `problems` are sentences, empty when a run may start."""

    def __init__(self, cluster: ClusterConfig, topology: Topology, folder: Path) -> None:
        self.hosts: dict[str, dict[str, Any]] = {}
        self.problems: list[str] = []
        self._cluster = cluster
        self._topology = topology
        self._folder = folder
        # A file of each host in the run folder. Its name is new each time: what another check left does not count.
        self._marks = {host.name: f"{host_probe.MARK}{uuid.uuid4().hex}" for host in topology.hosts}

    def run(self) -> None:
        """Ask every host for its facts; when all answer, what they see of each other's files, and an exchange."""
        self._ask_facts()
        if len(self.hosts) < len(self._topology.hosts):
            return
        self._check_versions()
        for host in self._topology.hosts:
            self._check_host(host)
        self._check_marks()
        self._check_exchange()

    def record(self) -> dict[str, Any]:
        return {"run_folder": str(self._folder), "hosts": self.hosts, "problems": self.problems}

    def _start(self, host: str, arguments: list[str], **variables: str) -> "subprocess.Popen[str]":
        environment, secrets = agent_command.passed_environment(self._cluster, os.environ)
        command = [sys.executable, "-m", "launcher.doctor.host_probe", *arguments]
        process = subprocess.Popen(
            ssh_command(self._cluster, host, remote_line(command, environment | variables)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin
        # A host that is out of reach reads nothing, which its answer will say.
        with suppress(OSError):
            process.stdin.write(f"{json.dumps(secrets)}\n")
            process.stdin.flush()
        return process

    def _ask_facts(self) -> None:
        # All are started before the first is waited for: hosts answer side by side.
        processes = {}
        for host in self._topology.hosts:
            arguments = ["facts", str(self._folder), self._marks[host.name]]
            processes[host.name] = self._start(host.name, arguments)

        for host, process in processes.items():
            assert process.stdin
            assert process.stdout
            try:
                facts = read_answer(process.stdout)
            except ValueError:
                _, errors = process.communicate()
                reason = last_words(errors)
                self.problems.append(
                    f"{host} cannot be used over ssh: {reason}. Make `ssh {host} true` work without a question, and "
                    f"have {sys.executable} and {os.getcwd()} there."
                )
                continue

            asked = time.time()
            process.stdin.write("\n")
            process.stdin.flush()
            clock = read_answer(process.stdout)
            answered = time.time()
            process.communicate()
            # Right to half of the time between question and answer.
            facts["clock_difference_s"] = round(clock - (asked + answered) / 2, 4)
            self.hosts[host] = facts

    def _check_versions(self) -> None:
        first = self._topology.hosts[0].name
        expected = self.hosts[first]
        for host, facts in self.hosts.items():
            for name in SAME:
                if facts[name] != expected[name]:
                    self.problems.append(
                        f"{host} has {name} {facts[name]}, {first} has {expected[name]}. Install the same on both."
                    )

    def _check_host(self, host: Host) -> None:
        """Whether one host has the GPUs that the hostfile uses, a folder to write to, and the right time."""
        facts = self.hosts[host.name]
        last_slot = max(host.slots)
        if facts["accelerator"] == "cuda" and facts["gpus"] <= last_slot:
            self.problems.append(
                f"{host.name} has {facts['gpus']} GPUs, and the hostfile uses slot {last_slot} of it. Lower its slots."
            )
        if facts["folder_error"]:
            self.problems.append(
                f"{host.name} cannot write to {self._folder}: {facts['folder_error']}. Choose a folder that all "
                "hosts share and can write, with --run-dir."
            )
        elif facts["free_bytes"] < LEAST_FREE_BYTES:
            self.problems.append(
                f"{host.name} has {facts['free_bytes'] / 2**30:.1f} GiB free at {self._folder}; checkpoints and "
                "models may not fit. Make room or choose another --run-dir."
            )
        if abs(facts["clock_difference_s"]) > MOST_CLOCK_DIFFERENCE_S:
            self.problems.append(
                f"The clock of {host.name} differs from this one's by {facts['clock_difference_s']:.1f} s, which "
                "makes times in reports wrong. Synchronise it (chrony, systemd-timesyncd)."
            )

    def _check_marks(self) -> None:
        """Every host must see what every other host wrote into the run folder."""
        for host, (marks, error) in self._ask(["marks", str(self._folder)]).items():
            unseen = []
            for other, mark in self._marks.items():
                if mark not in (marks or ()):
                    unseen.append(other)
            # A folder that cannot be written is a problem of its own, named already.
            if unseen and not self.hosts[host]["folder_error"]:
                self.problems.append(
                    f"{host} does not see in {self._folder} what {', '.join(unseen)} wrote there{error}. Put the run "
                    "folder on a file system that all hosts share (NFS, Lustre), mounted at the same path."
                )

    def _check_exchange(self) -> None:
        master = agent_command.master_address(self._cluster, self._topology)
        port = agent_command.choose_port(self._cluster)
        unreachable = {}
        failed = {}
        for host, (answer, error) in self._ask(["exchange", str(self._folder)], master, port).items():
            if answer is None:
                answer = {"step": "exchange", "error": error}
            self.hosts[host]["exchange_bytes_per_s"] = answer.get("bytes_per_s")
            if answer["step"] == "port":
                unreachable[host] = answer["error"]
            elif answer["step"] == "exchange":
                failed[host] = answer["error"]

        for host, error in unreachable.items():
            self.problems.append(
                f"{host} does not reach port {port} of {master}: {error}. Open it in the firewall (cluster.master_port "
                "fixes it), or give an address that every host reaches with cluster.master_address."
            )
        # Where one host is out of reach, the exchange fails on all the others too. One that fails, fails for all.
        if failed and not unreachable:
            host, error = next(iter(failed.items()))
            self.problems.append(
                f"The exchange between the hosts failed on {host}: {error}. Set GLOO_SOCKET_IFNAME (and on GPUs "
                "NCCL_SOCKET_IFNAME) to the network interface that joins the hosts."
            )

    def _ask(self, arguments: list[str], master: str = "", port: int = 0) -> dict[str, tuple[Any, str]]:
        """Run one part of the probe on every host at once; return what each answered, and what went wrong."""
        processes = {}
        for rank, host in enumerate(self._topology.hosts):
            processes[host.name] = self._start(
                host.name,
                [*arguments, self._marks[host.name]],
                RANK=str(rank),
                WORLD_SIZE=str(len(self._topology.hosts)),
                MASTER_ADDR=master,
                MASTER_PORT=str(port),
            )

        answers: dict[str, tuple[Any, str]] = {}
        for host, process in processes.items():
            try:
                output, errors = process.communicate(timeout=ANSWER_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                answers[host] = (None, f" (no answer within {ANSWER_S:g} s)")
                continue
            if process.returncode:
                reason = last_words(errors)
                answers[host] = (None, f" ({reason})")
            else:
                answers[host] = (read_answer(output.splitlines()), "")
        return answers
