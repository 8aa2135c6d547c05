"""The commands of one attempt at a stage while they run: one on this machine, or one for each host.

A command that leads to another host is held by its standard input: the agent there (`node.py`) reads what the processes
may not be shown on a command line, then a byte from time to time; it ends its host's processes when the input
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
        commands = [
            {
                "host": command.host,
                "command": command.arguments,
                "secret_variables": sorted(command.secrets or ()),
            }
            for command in self.commands
        ]
        return {"launcher": self.kind, "master": self.master, "ranks": self.ranks, "commands": commands}


class ProcessGroup:
    """The commands of an attempt, started."""

    def __init__(self, commands: list[Command], log: Path) -> None:
        self._commands = commands
        self._told = time.monotonic()
        self._failed: tuple[Command, int] | None = None
        with log.open("ab") as output:
            self._started = [
                subprocess.Popen(
                    command.arguments,
                    env=command.environment,
                    stdin=subprocess.DEVNULL if command.secrets is None else subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
                for command in commands
            ]
        for process, command in zip(self._started, commands, strict=True):
            if command.secrets is not None:
                _write(process, f"{json.dumps(command.secrets)}\n".encode())

    def poll(self) -> int | None:
        """Return None while all go on, the exit code of the first that failed, or 0 when all have left with 0."""
        if time.monotonic() - self._told >= ALIVE_EVERY_S:
            self.tell(ALIVE)
        codes = [process.poll() for process in self._started]
        for command, code in zip(self._commands, codes, strict=True):
            if code and not self._failed:
                self._failed = command, code
        if self._failed:
            return self._failed[1]
        return None if None in codes else 0

    def tell(self, word: bytes) -> None:
        """Send a word of `node.py` to every agent."""
        self._told = time.monotonic()
        for process in self._started:
            _write(process, word)

    def reason(self) -> str:
        """Return in words how the command that failed first ended."""
        command, code = self._failed or (self._commands[0], 0)
        where = "its processes" if command.secrets is None else f"the processes on {command.host}"
        if code == 0:
            return f"{where} left with exit code 0 before the stage was recorded as done"
        if code == 255 and command.secrets is not None:
            return f"the connection to {command.host} was lost, or could not be made"
        if code < 0:
            return f"{where} were ended by {signal.Signals(-code).name}"
        return f"{where} left with exit code {code}"

    def end(self) -> bool:
        """Kill what runs; return whether every agent confirmed that nothing is left on its host."""
        for process in self._started:
            if process.stdin:
                with suppress(OSError):
                    process.stdin.close()
        until = time.monotonic() + LEAVE_S
        confirmed = True
        for process, command in zip(self._started, self._commands, strict=True):
            if command.secrets is not None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, until - time.monotonic()))
                # 255 is what ssh says of itself; without a code, or killed, the way there says nothing of the host.
                confirmed &= process.returncode is not None and 0 <= process.returncode < 255
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return confirmed


def _write(process: subprocess.Popen[bytes], content: bytes) -> None:
    if process.stdin:
        with suppress(OSError):  # it has ended, which `poll` will see
            process.stdin.write(content)
            process.stdin.flush()
