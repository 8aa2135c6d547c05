"""Hosts that nobody can log in to: the same `chorus run` is started on each, and they speak through the run folder.

The one with `--node-rank 0` decides. For every other host it starts a relay here, which takes the place of ssh: held by
its standard input, it keeps an order file for that host and leaves with the exit code that the host answers. The other
hosts follow: they start the agent that the order names, hold it as long as the order is renewed, and write the answer.
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
from launcher.processes.agent import ABORT, ALIVE, STOP
from launcher.processes.process_group import Command, Launch
from launcher.processes.stop_request import StopRequest
from launcher.recipe import ClusterConfig
from launcher.recipe.hostfile import Topology
from launcher.run_folder import RunFolder, read_json, write_json, write_text

POLL_S = 0.2
# For the other host to end its processes, and for its answer to be seen through a network file system.
ANSWER_S = 60.0


def node_commands(topology: Topology, arguments: list[str]) -> list[tuple[str, list[str]]]:
    """Return, for every host, the command to start there."""
    return [
        (host.name, [sys.executable, "-m", "launcher.cli", *arguments, f"--node-rank={node}"])
        for node, host in enumerate(topology.hosts)
    ]


class SharedFolderLauncher:
    """Starts a stage's processes on this host, the first, and has the others started by those who follow."""

    def __init__(self, cluster: ClusterConfig, topology: Topology) -> None:
        self._cluster, self.topology = cluster, topology

    def training(self, run: RunFolder, stage: str, port: int | None = None) -> Launch:
        """Return the commands of a training stage: an agent here, a relay for every other host."""
        port = port or agent_command.choose_port(self._cluster)
        master = self._cluster.master_address or self.topology.hosts[0].name
        commands = []
        for node, host in enumerate(self.topology.hosts):
            command = agent_command.deepspeed_command(self.topology, node, run, stage, master, port)
            command = agent_command.agent_command(command, len(host.slots), self._cluster.threads)
            if node:
                command = [
                    sys.executable,
                    "-u",
                    "-m",
                    "launcher.processes.shared_folder",
                    str(run.order_file(node)),
                    *command,
                ]
            environment = {**os.environ, **worker_command.python_environment(os.environ)}
            commands.append(Command(host.name, command, environment, secrets={}))
        files = {run.stage(stage).hostfile: self.topology.hostfile()}
        return Launch("no_ssh", f"{master}:{port}", self.topology.placement(), commands, files)

    def evaluation(self, run: RunFolder, stage: str) -> Launch:
        """Return the command of an evaluation: one process here."""
        host = self.topology.hosts[0].name
        environment = worker_command.worker_environment(self._cluster, 1, worker_command.free_port())
        return Launch(
            "no_ssh", host, {host: [0]}, [Command(host, worker_command.evaluation_command(run, stage), environment)]
        )

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
        self._renewed = 0

    def run(self) -> int:
        """Pass on what the standard input says; return the other host's exit code, 255 when it does not answer."""
        sys.stdin.buffer.readline()  # secrets: the other host has its own
        self._write()
        until = None
        while (answer := read_json(_answer_file(self._file)) or {}).get("attempt") != self._order["attempt"]:
            if until is None and not self._listen():
                self._order["held"] = False
                self._write()
                until = time.monotonic() + ANSWER_S
            elif until is not None:
                if time.monotonic() > until:
                    return 255
                time.sleep(POLL_S)
        return answer["code"]

    def _listen(self) -> bool:
        """Wait a moment for words and pass them on; False when the input is closed."""
        readable, _, _ = select.select([sys.stdin], [], [], POLL_S)
        if not readable:
            return True
        words = os.read(sys.stdin.fileno(), 4096)
        if words:
            self._order["words"] += "".join(word.decode() for word in (ABORT, STOP) if word in words)
            self._write()
        return bool(words)

    def _write(self) -> None:
        self._renewed += 1
        write_json(self._file, {**self._order, "renewed": self._renewed})


def _answer_file(order_file: Path) -> Path:
    return order_file.with_suffix(".answer.json")


class Follower:
    """What `chorus run --node-rank I` does on every host but the first."""

    def __init__(self, run: RunFolder, node: int, stop: StopRequest, display: Display) -> None:
        self._run, self._file = run, run.order_file(node)
        self._stop, self._display = stop, display
        self._agent: subprocess.Popen[bytes] | None = None
        self._attempt, self._renewed, self._words = "", -1, 0

    def follow(self) -> None:
        """Obey until it is over; DistributedError when the run failed, Preempted when it or this was stopped."""
        self._first = read_json(self._file) or {}  # may be left from before; it counts once it is renewed
        self._display.say("Follows the first host, which is to be started with --node-rank 0.")
        try:
            while True:
                order = read_json(self._file) or {}
                fresh = order != self._first
                if fresh and "over" in order:
                    self._end(order["over"])
                    return
                if fresh and "command" in order:
                    self._obey(order)
                if self._stop.count:
                    self._leave(order)
                time.sleep(POLL_S)
        finally:
            self._release()

    def _obey(self, order: dict[str, Any]) -> None:
        if order["attempt"] != self._attempt and order["held"]:
            self._release()
            self._attempt, self._renewed, self._words = order["attempt"], -1, 0
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
            self._tell(b"{}\n")
        if order["attempt"] != self._attempt or self._agent is None:
            return
        if order["renewed"] != self._renewed:
            self._renewed = order["renewed"]
            self._tell(ALIVE + order["words"][self._words :].encode())
            self._words = len(order["words"])
        if not order["held"]:
            self._release()
        elif (code := self._agent.poll()) is not None:
            self._answer(code)

    def _tell(self, words: bytes) -> None:
        assert self._agent
        assert self._agent.stdin
        with suppress(OSError):
            self._agent.stdin.write(words)
            self._agent.stdin.flush()

    def _release(self) -> None:
        """Close the agent's input, with which it ends this host's processes, and say so."""
        if self._agent is None:
            return
        assert self._agent.stdin
        with suppress(OSError):
            self._agent.stdin.close()
        self._answer(self._agent.wait())

    def _answer(self, code: int) -> None:
        self._agent = None
        write_json(_answer_file(self._file), {"attempt": self._attempt, "code": code if code >= 0 else 128 - code})

    def _leave(self, order: dict[str, Any]) -> None:
        """This host was asked to stop: have all save, as a signal to any process does; at once when nothing runs."""
        if self._agent is None or self._stop.count > 1:
            raise Preempted("This host was asked to stop.")
        self._run.stage(order["command"][-1]).stop_file.touch()

    def _end(self, code: int) -> None:
        if code == exit_code(Preempted()):
            raise Preempted("The run was stopped.")
        if code:
            raise DistributedError(f"The run ended on the first host with exit code {code}; its output says why.")
        self._display.say("Everything is done.")


def show_commands(topology: Topology, run: RunFolder, arguments: list[str]) -> None:
    """Print the command of every host, and leave them in the run folder."""
    commands = node_commands(topology, arguments)
    lines = [f"# on {host}, in {os.getcwd()}\n{worker_command.shown(command)}\n" for host, command in commands]
    write_text(run.node_commands_file, "\n".join(lines))
    print("\n".join(lines))
    print(f"Start one on each host, in any order. They are in {run.node_commands_file} too.")


if __name__ == "__main__":
    sys.exit(_OrderWriter(Path(sys.argv[1]), sys.argv[2:]).run())
