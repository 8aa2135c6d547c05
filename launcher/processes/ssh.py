"""Many hosts over ssh: one connection to each, held by this process, to the agent there (`agent.py`).

Asked of the hosts: a login without a password, the same paths for the interpreter, the current folder and the run
folder, and a shell of the Bourne kind. Keep-alive messages notice a network that is gone within half a minute.
"""

import os
import shlex
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from launcher.errors import ConfigError
from launcher.processes import agent_command, worker_command
from launcher.processes.process_group import Command, Launch
from launcher.processes.remote_answer import last_words, read_answer
from launcher.processes.run_processes import token_environment
from launcher.recipe import ClusterConfig
from launcher.recipe.hostfile import Topology
from launcher.run_folder import RunFolder

OPTIONS = (
    "BatchMode=yes",  # a question would never be answered
    "ConnectTimeout=20",
    # Six messages of 5 s each without an answer: the half minute after which a network counts as gone.
    "ServerAliveInterval=5",
    "ServerAliveCountMax=6",
    "ForwardX11=no",
)
ANSWER_S = 60.0


def remote_line(command: list[str], environment: dict[str, str]) -> str:
    """Return a command for a remote shell: in this folder, with these variables."""
    variables = [f"{name}={value}" for name, value in environment.items()]
    # `exec`: no shell stays between ssh and the agent, so that the closed input and the exit code are the agent's.
    return f"cd {shlex.quote(os.getcwd())} && exec env {shlex.join([*variables, *command])}"


def ssh_command(cluster: ClusterConfig, host: str, line: str) -> list[str]:
    """Return the command that runs a line on a host; ssh keeps to the first of two values of an option."""
    command = ["ssh", "-T", *cluster.ssh_options]
    for option in OPTIONS:
        command += ["-o", option]
    return [*command, host, line]


class SshLauncher:
    """Starts a stage's processes on the hosts of a hostfile."""

    def __init__(self, cluster: ClusterConfig, topology: Topology) -> None:
        self.topology = topology
        self._cluster = cluster

    def training(self, run: RunFolder, stage: str, port: int | None = None) -> Launch:
        """Return the commands of a training stage, one for each host."""
        port = port or agent_command.choose_port(self._cluster)
        master = agent_command.master_address(self._cluster, self.topology)
        commands = []
        for node, host in enumerate(self.topology.hosts):
            command = agent_command.deepspeed_command(self.topology, node, run, stage, master, port)
            commands.append(self._command(run, host.name, command, len(host.slots)))
        files = {run.stage(stage).hostfile: self.topology.hostfile()}
        return Launch("ssh", f"{master}:{port}", self.topology.placement(), commands, files)

    def evaluation(self, run: RunFolder, stage: str) -> Launch:
        """Return the command of an evaluation: one process on the first host."""
        host = self.topology.hosts[0].name
        command = self._command(run, host, worker_command.evaluation_command(run, stage), processes=1)
        return Launch("ssh", host, {host: [0]}, [command])

    def end_elsewhere(self, run: RunFolder, stage: str, terminate_s: float) -> int:
        """End what an earlier launcher, or an agent that is gone, left of a stage; return how many processes."""
        answers = self.ask(agent_command.end_command(run, stage, terminate_s))
        for host, answer in answers.items():
            if type(answer) is not int:
                raise ConfigError(f"The host {host} answered {str(answer)[:60]!r} where a number of processes belongs.")
        return sum(answers.values())

    def notify_followers(self, run: RunFolder) -> AbstractContextManager[None]:
        """Nobody waits elsewhere for the end of the run."""
        return nullcontext()

    def ask(self, command: list[str]) -> dict[str, Any]:
        """Run a short command on every host at once and return what each answered; ConfigError where that fails."""
        environment, _ = agent_command.passed_environment(self._cluster, os.environ)
        line = remote_line(command, environment)
        # All are started before the first is waited for: hosts answer side by side.
        processes = {}
        for host in self.topology.hosts:
            processes[host.name] = subprocess.Popen(
                ssh_command(self._cluster, host.name, line),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

        answers = {}
        for host, process in processes.items():
            try:
                output, errors = process.communicate(timeout=ANSWER_S)
            except subprocess.TimeoutExpired:
                process.kill()
                output, errors = process.communicate()
                errors += f"no answer within {ANSWER_S:g} s"
            if process.returncode:
                reason = last_words(errors) or f"exit code {process.returncode}"
                raise ConfigError(
                    f"The host {host} cannot be used over ssh: {reason}. It must let you in without a question (try "
                    f"`ssh {host} true`) and have {os.getcwd()} and {sys.executable}; `chorus doctor --hostfile F` "
                    "looks at all hosts."
                )
            try:
                answers[host] = read_answer(output.splitlines())
            except ValueError as error:
                raise ConfigError(
                    f"The host {host} ran `{shlex.join(command)}`, but {error}. Run it there by hand and see what its "
                    "shell's start-up files print or run instead."
                ) from None
        return answers

    def _command(self, run: RunFolder, host: str, command: list[str], processes: int) -> Command:
        environment, secrets = agent_command.passed_environment(self._cluster, os.environ)
        environment |= token_environment(run)
        agent = agent_command.agent_command(command, processes, self._cluster.threads)
        line = remote_line(agent, environment)
        return Command(host, ssh_command(self._cluster, host, line), dict(os.environ), secrets)
