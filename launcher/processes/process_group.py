"""The commands of one attempt at a stage while they run: one on this machine, or one for each host.

A command that leads to another host is held by its standard input. The agent there (`agent.py`) reads what the
processes may not be shown on a command line, then a byte from time to time. It ends its host's processes when the input
is closed or silent. So whatever becomes of this process or of the network, nothing is left behind.
"""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.processes.agent import ALIVE, ALIVE_EVERY_S

# For the agents to kill their processes and leave, and for their connections to say so.
LEAVE_S = 10.0
# What ssh leaves with when it, not the command it ran, has failed.
SSH_FAILED = 255


@dataclass(frozen=True)
class Command:
    """What is started here for the processes of a host. `secrets` is None where no agent listens."""

    host: str
    arguments: list[str]
    environment: dict[str, str]
    secrets: dict[str, str] | None = None


@dataclass(frozen=True)
class Launch:
    """One attempt at a stage: where its first process is found, the ranks of each host, its commands, and files that
    those read."""

    kind: str
    master: str
    ranks: dict[str, list[int]]
    commands: list[Command]
    files: dict[Path, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return what launch.json says; of secret variables only the names."""
        commands = []
        for command in self.commands:
            commands.append(
                {
                    "host": command.host,
                    "command": command.arguments,
                    "secret_variables": sorted(command.secrets or ()),
                }
            )
        return {"launcher": self.kind, "master": self.master, "ranks": self.ranks, "commands": commands}


class ProcessGroup:
    """The commands of an attempt, started."""

    def __init__(self, commands: list[Command], log: Path) -> None:
        self._commands = commands
        self._processes: list[subprocess.Popen[bytes]] = []
        self._last_sent = time.monotonic()
        self._first_failed: tuple[Command, int] | None = None
        with log.open("ab") as output:
            for command in commands:
                # Without an agent nobody reads, and a worker must not wait for a terminal's input.
                stdin = subprocess.DEVNULL if command.secrets is None else subprocess.PIPE
                # A session of its own: Ctrl-C in a terminal reaches the launcher, which then decides.
                process = subprocess.Popen(
                    command.arguments,
                    env=command.environment,
                    stdin=stdin,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
                self._processes.append(process)
        for process, command in zip(self._processes, commands, strict=True):
            if command.secrets is not None:
                _write(process, f"{json.dumps(command.secrets)}\n".encode())

    def poll(self) -> int | None:
        """Return None while all go on, the exit code of the first that failed, or 0 when all have left with 0."""
        if time.monotonic() - self._last_sent >= ALIVE_EVERY_S:
            self.send(ALIVE)
        codes = [process.poll() for process in self._processes]
        for command, code in zip(self._commands, codes, strict=True):
            if code and not self._first_failed:
                self._first_failed = (command, code)
        if self._first_failed:
            return self._first_failed[1]
        if None in codes:
            return None
        return 0

    def send(self, message: bytes) -> None:
        """Send a message (ALIVE, ABORT or STOP of `agent.py`) to every agent."""
        self._last_sent = time.monotonic()
        for process in self._processes:
            _write(process, message)

    def reason(self) -> str:
        """Return in words how the command that failed first ended."""
        command, code = self._first_failed or (self._commands[0], 0)
        where = "its processes"
        if command.secrets is not None:
            where = f"the processes on {command.host}"
        if code == 0:
            return f"{where} left with exit code 0 before the stage was recorded as done"
        if code == SSH_FAILED and command.secrets is not None:
            return f"the connection to {command.host} was lost, or could not be made"
        if code < 0:
            return f"{where} were ended by {signal.Signals(-code).name}"
        return f"{where} left with exit code {code}"

    def end(self) -> bool:
        """Kill what runs; return whether every agent confirmed that nothing is left on its host."""
        # All inputs first: the agents end their hosts' processes side by side.
        for process in self._processes:
            if process.stdin:
                with suppress(OSError):
                    process.stdin.close()

        until = time.monotonic() + LEAVE_S
        all_confirmed = True
        for process, command in zip(self._processes, self._commands, strict=True):
            if command.secrets is not None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, until - time.monotonic()))
                # Without a code, or killed, the connection says nothing of the host.
                if process.returncode is None or not 0 <= process.returncode < SSH_FAILED:
                    all_confirmed = False
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return all_confirmed


def _write(process: subprocess.Popen[bytes], content: bytes) -> None:
    if process.stdin:
        # A process that has ended reads nothing, which `poll` will see.
        with suppress(OSError):
            process.stdin.write(content)
            process.stdin.flush()
