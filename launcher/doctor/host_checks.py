"""The hosts of a hostfile, examined over the same ssh that a run would use: what is wrong, and what mends it."""

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from launcher.doctor import host_probe
from launcher.processes import agent_command
from launcher.processes.ssh import remote_line, ssh_command
from launcher.recipe import ClusterConfig
from launcher.recipe.hostfile import Topology

SAME = ("python", *host_probe.PACKAGES, "chorus", "accelerator")
MOST_CLOCK_DIFFERENCE_S = 2.0
LEAST_FREE_BYTES = 5 << 30
ANSWER_S = 120.0


class HostChecks:
    """What was found on the hosts of a run; `problems` are sentences, empty when a run may start."""

    def __init__(self, cluster: ClusterConfig, topology: Topology, folder: Path) -> None:
        self._cluster, self._topology, self._folder = cluster, topology, folder
        self._marks = {host.name: f"{host_probe.MARK}{uuid.uuid4().hex}" for host in topology.hosts}
        self.hosts: dict[str, dict[str, Any]] = {}
        self.problems: list[str] = []

    def run(self) -> None:
        """Ask every host for its facts; when all answer, what they see of each other's files, and an exchange."""
        self._facts()
        if len(self.hosts) < len(self._topology.hosts):
            return
        self._judge_facts()
        self._judge_marks()
        self._judge_exchange()

    def record(self) -> dict[str, Any]:
        return {"run_folder": str(self._folder), "hosts": self.hosts, "problems": self.problems}

    def _start(self, host: str, arguments: list[str], **variables: str) -> "subprocess.Popen[str]":
        environment, _ = agent_command.passed_environment(self._cluster, os.environ)
        command = [sys.executable, "-m", "launcher.doctor.host_probe", *arguments]
        return subprocess.Popen(
            ssh_command(self._cluster, host, remote_line(command, environment | variables)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _facts(self) -> None:
        started = {
            host.name: self._start(host.name, ["facts", str(self._folder), self._marks[host.name]])
            for host in self._topology.hosts
        }
        for host, process in started.items():
            assert process.stdin
            assert process.stdout
            line = process.stdout.readline()
            if not line:
                _, errors = process.communicate()
                self.problems.append(
                    f"{host} cannot be used over ssh: {' '.join(errors.split())[-300:]}. Make `ssh {host} true` work "
                    f"without a question, and have {sys.executable} and {os.getcwd()} there."
                )
                continue
            facts = json.loads(line)
            asked = time.time()
            process.stdin.write("\n")
            process.stdin.flush()
            clock, answered = float(process.stdout.readline()), time.time()
            process.communicate()
            # Right to half of the time between question and answer.
            facts["clock_difference_s"] = round(clock - (asked + answered) / 2, 4)
            self.hosts[host] = facts

    def _judge_facts(self) -> None:
        (first, expected), *others = self.hosts.items()
        for host, facts in others:
            for name in SAME:
                if facts[name] != expected[name]:
                    self.problems.append(
                        f"{host} has {name} {facts[name]}, {first} has {expected[name]}. Install the same on both."
                    )
        for host in self._topology.hosts:
            facts = self.hosts[host.name]
            if facts["accelerator"] == "cuda" and facts["gpus"] <= max(host.slots):
                self.problems.append(
                    f"{host.name} has {facts['gpus']} GPUs, and the hostfile uses slot {max(host.slots)} of it. Lower "
                    "its slots."
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

    def _judge_marks(self) -> None:
        """Every host must see what every other host wrote into the run folder."""
        for host, (marks, error) in self._ask(["marks", str(self._folder)]).items():
            unseen = [other for other, mark in self._marks.items() if mark not in (marks or ())]
            if unseen and not self.hosts[host]["folder_error"]:
                self.problems.append(
                    f"{host} does not see in {self._folder} what {', '.join(unseen)} wrote there{error}. Put the run "
                    "folder on a file system that all hosts share (NFS, Lustre), mounted at the same path."
                )

    def _judge_exchange(self) -> None:
        master = self._cluster.master_address or self._topology.hosts[0].name
        port = agent_command.choose_port(self._cluster)
        answers = self._ask(["exchange", str(self._folder)], master, port)
        steps = {host: answer or {"step": "exchange", "error": error} for host, (answer, error) in answers.items()}
        for host, answer in steps.items():
            self.hosts[host]["exchange_bytes_per_s"] = answer.get("bytes_per_s")
        at_port = {host: a["error"] for host, a in steps.items() if a["step"] == "port"}
        at_exchange = {host: a["error"] for host, a in steps.items() if a["step"] == "exchange"}
        for host, error in at_port.items():
            self.problems.append(
                f"{host} does not reach port {port} of {master}: {error}. Open it in the firewall (cluster.master_port "
                "fixes it), or give an address that every host reaches with cluster.master_address."
            )
        if at_exchange and not at_port:
            host, error = next(iter(at_exchange.items()))
            self.problems.append(
                f"The exchange between the hosts failed on {host}: {error}. Set GLOO_SOCKET_IFNAME (and on GPUs "
                "NCCL_SOCKET_IFNAME) to the network interface that joins the hosts."
            )

    def _ask(self, arguments: list[str], master: str = "", port: int = 0) -> dict[str, tuple[Any, str]]:
        """Run one part of the survey on every host at once; return what each printed last, and what went wrong."""
        world = len(self._topology.hosts)
        started = {}
        for rank, host in enumerate(self._topology.hosts):
            variables = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": master, "MASTER_PORT": str(port)}
            started[host.name] = self._start(host.name, [*arguments, self._marks[host.name]], **variables)
        return {host: self._answer(process) for host, process in started.items()}

    @staticmethod
    def _answer(process: "subprocess.Popen[str]") -> tuple[Any, str]:
        try:
            output, errors = process.communicate(timeout=ANSWER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return None, f" (no answer within {ANSWER_S:g} s)"
        if process.returncode:
            return None, f" ({' '.join(errors.split())[-300:]})"
        return json.loads(output.strip().splitlines()[-1]), ""
