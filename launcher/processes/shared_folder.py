"""Hosts that nobody can log in to: the same `chorus run` is started on each, and they speak through the run folder.

The one with `--node-rank 0` decides. For every other host it starts an order writer here, which takes the place of ssh:
held by its standard input, it keeps an order file for that host and leaves with the exit code that the host answers.
The other hosts follow: they start the agent that the order names, hold it as long as the order is renewed, and write
the answer.

An order file is JSON: `attempt` (a new name for each), `command` (the agent's), `words` (all messages so far), `held`
(false: end the processes), `renewed` (a count), or `over` (the exit code of the whole run). An answer has `attempt` and
`code`.
"""

import os
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from launcher.errors import DistributedError, Preempted, exit_code
from launcher.monitoring.progress import Display
from launcher.processes import agent_command, worker_command
from launcher.processes.agent import ABORT, ALIVE, READ_BYTES, STOP
from launcher.processes.process_group import SSH_FAILED, Command, Launch
from launcher.processes.stop_request import StopRequest
from launcher.recipe import ClusterConfig
from launcher.recipe.hostfile import Topology
from launcher.run_folder import RunFolder, read_json, write_json, write_text

POLL_S = 0.2
# For the other host to end its processes, and for its answer to be seen through a network file system.
ANSWER_S = 60.0


def node_commands(topology: Topology, arguments: list[str]) -> list[tuple[str, list[str]]]:
    """Return, for every host, the command to start there."""
    commands = []
    for node, host in enumerate(topology.hosts):
        command = [sys.executable, "-m", "launcher.cli", *arguments, f"--node-rank={node}"]
        commands.append((host.name, command))
    return commands


class SharedFolderLauncher:
    """Starts a stage's processes on this host, the first, and has the others started by those who follow."""

    def __init__(self, cluster: ClusterConfig, topology: Topology) -> None:
        self.topology = topology
        self._cluster = cluster

    def training(self, run: RunFolder, stage: str, port: int | None = None) -> Launch:
        """Return the commands of a training stage: an agent here, an order writer for every other host."""
        port = port or agent_command.choose_port(self._cluster)
        master = agent_command.master_address(self._cluster, self.topology)
        environment = {**os.environ, **worker_command.python_environment(os.environ)}
        commands = []
        for node, host in enumerate(self.topology.hosts):
            command = agent_command.deepspeed_command(self.topology, node, run, stage, master, port)
            command = agent_command.agent_command(command, len(host.slots), self._cluster.threads)
            if node > 0:
                order_file = str(run.order_file(node))
                command = [sys.executable, "-u", "-m", "launcher.processes.shared_folder", order_file, *command]
            # Secrets are empty: every host has its own environment. They are not None, for an agent listens.
            commands.append(Command(host.name, command, environment, secrets={}))
        files = {run.stage(stage).hostfile: self.topology.hostfile()}
        return Launch("no_ssh", f"{master}:{port}", self.topology.placement(), commands, files)

    def evaluation(self, run: RunFolder, stage: str) -> Launch:
        """Return the command of an evaluation: one process here."""
        return agent_command.evaluation_here("no_ssh", self._cluster, self.topology, run, stage)

    def end_elsewhere(self, run: RunFolder, stage: str, terminate_s: float) -> int:
        """Nothing to do: who follows ends what it has before it starts anew, and an agent ends with who follows."""
        return 0

    @contextmanager
    def notify_followers(self, run: RunFolder) -> Iterator[None]:
        """Tell those who follow, at the end, that it is over and with which exit code."""
        code = 0
        try:
            yield
        except BaseException as error:
            code = exit_code(error)
            raise
        finally:
            for node in range(1, len(self.topology.hosts)):
                write_json(run.order_file(node), {"attempt": uuid.uuid4().hex, "over": code})


class _OrderWriter:
    """Stands here for the agent of another host."""

    def __init__(self, order_file: Path, command: list[str]) -> None:
        self._file = order_file
        self._order: dict[str, Any] = {"attempt": uuid.uuid4().hex, "command": command, "words": "", "held": True}
        self._num_writes = 0

    def run(self) -> int:
        """Pass on what the standard input says; return the other host's exit code, 255 when it does not answer."""
        # The line of secrets: the other host has its own.
        sys.stdin.buffer.readline()
        self._write()
        while self._order["held"]:
            code = self._read_answer()
            if code is not None:
                return code
            if not self._forward_messages():
                self._order["held"] = False
                self._write()

        until = time.monotonic() + ANSWER_S
        while True:
            code = self._read_answer()
            if code is not None:
                return code
            if time.monotonic() > until:
                return SSH_FAILED
            time.sleep(POLL_S)

    def _read_answer(self) -> int | None:
        """Return the exit code of this attempt's agent; None before there is one."""
        answer = read_json(_answer_file(self._file)) or {}
        if answer.get("attempt") != self._order["attempt"]:
            return None
        return answer["code"]

    def _forward_messages(self) -> bool:
        """Wait a moment for messages and pass them on; False when the input is closed."""
        readable, _, _ = select.select([sys.stdin], [], [], POLL_S)
        if not readable:
            return True
        messages = os.read(sys.stdin.fileno(), READ_BYTES)
        if not messages:
            return False
        # ALIVE is not kept: that the order is renewed says the same.
        for message in (ABORT, STOP):
            if message in messages:
                self._order["words"] += message.decode()
        self._write()
        return True

    def _write(self) -> None:
        self._num_writes += 1
        write_json(self._file, {**self._order, "renewed": self._num_writes})


def _answer_file(order_file: Path) -> Path:
    return order_file.with_suffix(".answer.json")


class Follower:
    """What `chorus run --node-rank I` does on every host but the first."""

    def __init__(self, run: RunFolder, node: int, stop: StopRequest, display: Display) -> None:
        self._run = run
        self._file = run.order_file(node)
        self._stop = stop
        self._display = display
        self._agent: subprocess.Popen[bytes] | None = None
        self._attempt = ""
        self._renewed = -1
        self._num_forwarded = 0

    def follow(self) -> None:
        """Follow orders to the end of the run; DistributedError when it failed, Preempted after a stop."""
        # An order left from before counts once it is renewed.
        stale_order = read_json(self._file) or {}
        self._display.say("Follows the first host, which is to be started with --node-rank 0.")
        try:
            while True:
                order = read_json(self._file) or {}
                is_fresh = order != stale_order
                if is_fresh and "over" in order:
                    break
                if is_fresh and "command" in order:
                    self._carry_out(order)
                if self._stop.count:
                    # At once when nothing runs here, or when asked twice.
                    if self._agent is None or self._stop.count > 1:
                        raise Preempted("This host was asked to stop.")
                    # The processes of all hosts see this file and save, as after a signal to any of them.
                    self._run.stage(order["command"][-1]).stop_file.touch()
                time.sleep(POLL_S)
        finally:
            self._end_agent()

        code = order["over"]
        if code == exit_code(Preempted()):
            raise Preempted("The run was stopped.")
        if code:
            raise DistributedError(f"The run ended on the first host with exit code {code}; its output says why.")
        self._display.say("Everything is done.")

    def _carry_out(self, order: dict[str, Any]) -> None:
        if order["attempt"] != self._attempt and order["held"]:
            self._end_agent()
            self._start_agent(order)
        if order["attempt"] != self._attempt or self._agent is None:
            return

        # The first host renews its order as it would write to an agent: when it falls silent, so does this one, and
        # the agent ends its processes.
        if order["renewed"] != self._renewed:
            self._renewed = order["renewed"]
            new_messages = order["words"][self._num_forwarded :]
            self._num_forwarded = len(order["words"])
            self._send(ALIVE + new_messages.encode())
        if not order["held"]:
            self._end_agent()
            return
        code = self._agent.poll()
        if code is not None:
            self._answer(code)

    def _start_agent(self, order: dict[str, Any]) -> None:
        self._attempt = order["attempt"]
        self._renewed = -1
        self._num_forwarded = 0
        stage = self._run.stage(order["command"][-1])
        stage.logs.mkdir(parents=True, exist_ok=True)
        self._display.say(f"{stage.name}: starts its processes of this host")
        with stage.launcher_log.open("ab") as log:
            self._agent = subprocess.Popen(
                order["command"],
                env={**os.environ, **worker_command.python_environment(os.environ)},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # The line of secrets, empty.
        self._send(b"{}\n")

    def _send(self, messages: bytes) -> None:
        assert self._agent
        assert self._agent.stdin
        # An agent that has ended reads nothing, which `poll` will see.
        with suppress(OSError):
            self._agent.stdin.write(messages)
            self._agent.stdin.flush()

    def _end_agent(self) -> None:
        """Close the agent's input, with which it ends this host's processes, and say so."""
        if self._agent is None:
            return
        assert self._agent.stdin
        with suppress(OSError):
            self._agent.stdin.close()
        self._answer(self._agent.wait())

    def _answer(self, code: int) -> None:
        self._agent = None
        if code < 0:
            # As a shell says it: an exit code cannot be negative.
            code = 128 - code
        write_json(_answer_file(self._file), {"attempt": self._attempt, "code": code})


def show_commands(topology: Topology, run: RunFolder, arguments: list[str]) -> None:
    """Print the command of every host, and leave them in the run folder."""
    paragraphs = []
    for host, command in node_commands(topology, arguments):
        paragraphs.append(f"# on {host}, in {os.getcwd()}\n{worker_command.shown(command)}\n")
    text = "\n".join(paragraphs)
    write_text(run.node_commands_file, text)
    print(text)
    print(f"Start one on each host, in any order. They are in {run.node_commands_file} too.")


if __name__ == "__main__":
    sys.exit(_OrderWriter(Path(sys.argv[1]), sys.argv[2:]).run())
