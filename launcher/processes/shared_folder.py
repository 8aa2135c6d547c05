"""Hosts that nobody can log in to: the same `chorus run` is started on each, and they speak through the run folder.

The one with `--node-rank 0` decides. For every other host it starts an order writer here, which takes the place of ssh:
held by its standard input, it keeps an order file for that host and leaves with the exit code that the host answers.
The other hosts follow: they start the stage that the order names, hold its agent as long as the order is renewed, and
write the answer.

An order file is JSON: `attempt` (a new name for each), `stage`, `port` (of the first process), `words` (all messages so
far), `held` (false: end the processes), `renewed` (a count), or `over` (the exit code of the whole run). An answer has
`attempt` and `code`. What is started follows from the recipe that each host was given itself: an order can choose one
of its stages and nothing else. Files of another user are refused, and so is what is no order.
"""

import os
import select
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data.files import parse_json
from launcher.errors import ConfigError, DistributedError, Preempted, exit_code
from launcher.monitoring.progress import Display
from launcher.processes import agent_command, worker_command
from launcher.processes.agent import ABORT, ALIVE, READ_BYTES, STOP
from launcher.processes.process_group import SSH_FAILED, Command, Launch
from launcher.processes.run_processes import token_environment
from launcher.processes.stop_request import StopRequest
from launcher.recipe import ClusterConfig, Recipe
from launcher.recipe.hostfile import Topology
from launcher.run_folder import RunFolder, write_json, write_text

ORDER_WRITER_MODULE = "launcher.processes.shared_folder"
ORDER_KEYS = {"attempt": str, "stage": str, "port": int, "words": str, "held": bool, "renewed": int}
MAX_ORDER_BYTES = 2**16
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
        environment = _agent_environment(run)
        commands = []
        for node, host in enumerate(self.topology.hosts):
            command = self.agent_of(node, run, stage, port)
            if node > 0:
                # Like an agent's, its command line ends in RUN_DIR STAGE.
                writer = [sys.executable, "-u", "-m", ORDER_WRITER_MODULE, str(run.order_file(node)), str(port)]
                command = [*writer, str(run.path), stage]
            # Secrets are empty: every host has its own environment. They are not None, for an agent listens.
            commands.append(Command(host.name, command, environment, secrets={}))
        files = {run.stage(stage).hostfile: self.topology.hostfile()}
        return Launch("no_ssh", f"{master}:{port}", self.topology.placement(), commands, files)

    def agent_of(self, node: int, run: RunFolder, stage: str, port: int) -> list[str]:
        """Return the command that starts a host's agent, on that host."""
        master = agent_command.master_address(self._cluster, self.topology)
        command = agent_command.deepspeed_command(self.topology, node, run, stage, master, port)
        processes = len(self.topology.hosts[node].slots)
        return agent_command.agent_command(command, processes, self._cluster.threads)

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


def _agent_environment(run: RunFolder) -> dict[str, str]:
    """Return the environment of an agent on this host."""
    return {**os.environ, **worker_command.python_environment(os.environ), **token_environment(run)}


def read_own(path: Path) -> dict[str, Any]:
    """Return the JSON mapping in a file of this user, empty when there is no file.

    ConfigError when it is a link, another user's or no mapping: whoever may write into the folder could have put it
    there.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(MAX_ORDER_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        # A link gives ELOOP.
        raise _no_order(path, f"it cannot be opened ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise _no_order(path, "it is no plain file")
    if status.st_uid != os.getuid() and status.st_uid != _owner_shown(path.parent):
        raise _no_order(path, f"it belongs to user {status.st_uid}, and this is user {os.getuid()}")
    if len(content) > MAX_ORDER_BYTES:
        raise _no_order(path, f"it has more than {MAX_ORDER_BYTES} bytes")
    try:
        values = parse_json(content)
    except ValueError as error:
        raise _no_order(path, f"it cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise _no_order(path, "it holds no mapping")
    return values


def _owner_shown(folder: Path) -> int:
    """Return whose a file of this process is here: a network file system may show root as nobody."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_uid


def _no_order(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"{path}, through which the hosts of a run speak, is not taken: {reason}. Start all hosts as the same user, "
        "look who may write into the run folder, and remove the file."
    )


def _check_keys(path: Path, values: dict[str, Any], kinds: dict[str, type]) -> None:
    """ConfigError unless a mapping has a value of each kind."""
    for key, kind in kinds.items():
        # By its exact type: true is an int in Python.
        if type(values.get(key)) is not kind:
            raise _no_order(path, f"its {key} is {str(values.get(key))[:60]!r}")


class _OrderWriter:
    """Stands here for the agent of another host."""

    def __init__(self, order_file: Path, stage: str, port: int) -> None:
        self._file = order_file
        self._order: dict[str, Any] = {
            "attempt": uuid.uuid4().hex,
            "stage": stage,
            "port": port,
            "words": "",
            "held": True,
        }
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
        path = _answer_file(self._file)
        answer = read_own(path)
        if answer.get("attempt") != self._order["attempt"]:
            return None
        _check_keys(path, answer, {"code": int})
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

    def __init__(
        self,
        recipe: Recipe,
        launcher: SharedFolderLauncher,
        run: RunFolder,
        node: int,
        stop: StopRequest,
        display: Display,
    ) -> None:
        self._stages = [stage.name for stage in recipe.training_stages()]
        self._launcher = launcher
        self._run = run
        self._node = node
        self._file = run.order_file(node)
        self._stop = stop
        self._display = display
        self._agent: subprocess.Popen[bytes] | None = None
        self._attempt = ""
        self._stage = ""
        self._renewed = -1
        self._num_forwarded = 0
        # An order left from before counts once it is renewed.
        self._stale_order = read_own(self._file)

    def follow(self) -> None:
        """Follow orders to the end of the run, those that came since this object was made.

        DistributedError when it failed, Preempted after a stop.
        """
        self._display.say("Follows the first host, which decides.")
        try:
            while True:
                order = read_own(self._file)
                is_fresh = order != self._stale_order
                if is_fresh and "over" in order:
                    _check_keys(self._file, order, {"over": int})
                    break
                if is_fresh and order:
                    self._check(order)
                    self._carry_out(order)
                if self._stop.count:
                    # At once when nothing runs here, or when asked twice.
                    if self._agent is None or self._stop.count > 1:
                        raise Preempted("This host was asked to stop.")
                    # The processes of all hosts see this file and save, as after a signal to any of them.
                    self._run.stage(self._stage).stop_file.touch()
                time.sleep(POLL_S)
        finally:
            self._end_agent()

        code = order["over"]
        if code == exit_code(Preempted()):
            raise Preempted("The run was stopped.")
        if code:
            raise DistributedError(f"The run ended on the first host with exit code {code}; its output says why.")
        self._display.say("Everything is done.")

    def _check(self, order: dict[str, Any]) -> None:
        """ConfigError for what is no order, or one of a stage that this host's recipe does not train."""
        _check_keys(self._file, order, ORDER_KEYS)
        if order["stage"] not in self._stages:
            stages = ", ".join(self._stages)
            raise _no_order(self._file, f"its stage is {order['stage'][:60]!r}, and the recipe here trains {stages}")
        if not 0 < order["port"] < 65536:
            raise _no_order(self._file, f"its port is {order['port']}")
        if not set(order["words"]) <= set((ABORT + STOP).decode()):
            raise _no_order(self._file, f"its words are {order['words'][:60]!r}")

    def _carry_out(self, order: dict[str, Any]) -> None:
        if order["attempt"] != self._attempt and order["held"]:
            self._end_agent()
            self._attempt = order["attempt"]
            self._renewed = -1
            self._num_forwarded = 0
            self._stage = order["stage"]
            stage = self._run.stage(self._stage)
            stage.logs.mkdir(parents=True, exist_ok=True)
            self._display.say(f"{stage.name}: starts its processes of this host")
            with stage.launcher_log.open("ab") as log:
                self._agent = subprocess.Popen(
                    self._launcher.agent_of(self._node, self._run, self._stage, order["port"]),
                    env=_agent_environment(self._run),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            # The line of secrets, empty.
            self._send(b"{}\n")
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
    write_text(run.node_commands_file, text, private=True)
    print(text)
    print(f"Start one on each host, in any order. They are in {run.node_commands_file} too.")


def main(arguments: list[str]) -> int:
    """Write orders for another host; return the exit code that it answers, or that of what is no answer."""
    order_file, port, _, stage = arguments
    try:
        return _OrderWriter(Path(order_file), stage, int(port)).run()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return exit_code(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
