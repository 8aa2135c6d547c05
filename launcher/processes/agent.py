"""The agent of one host: `python -m launcher.processes.agent --processes N -- COMMAND... RUN_DIR STAGE`.

It starts the command, DeepSpeed's launcher of this host, and leaves with its exit code. Its standard input holds
it: a line of JSON with environment variables that must not stand on a command line, then single bytes. When the input
is closed, or silent for long, whoever asked for the processes is gone, and they are killed. What it sees of lost
processes it notes in the run folder, because only their own host can tell.
"""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from launcher.errors import ConfigError, exit_code
from launcher.processes.stop_request import StopRequest
from launcher.processes.watchdog import is_running
from launcher.processes.worker_command import num_cores
from launcher.run_folder import RunFolder

# What may be said on the standard input: still there; write your stacks and end; save and leave.
ALIVE, ABORT, STOP = b".", b"a", b"s"
ALIVE_EVERY_S = 5.0
# Long enough for a machine that is busy or a launcher that was paused for a moment.
SILENCE_S = 120.0
POLL_S = 0.1
LOOK_S = 0.3
ABORT_S = 1.0


def main(arguments: list[str]) -> int:
    options, command = _options(arguments)
    run, stage = RunFolder(Path(command[-2])), command[-1]
    if not run.recipe_file.is_file():
        print(
            f"{os.uname().nodename} does not see the run folder {run.path}. Put it, with --run-dir, on a file system "
            "that all hosts share.",
            file=sys.stderr,
        )
        return exit_code(ConfigError())
    environment = {
        **os.environ,
        **_first_line(sys.stdin.fileno()),
        "OMP_NUM_THREADS": str(options.threads or max(1, num_cores() // options.processes)),
        "CHORUS_LAUNCHER_PID": str(os.getpid()),
    }
    # A signal to this host's processes is theirs to answer: they agree with those elsewhere, save and leave.
    with StopRequest().installed() as stop:
        return HostAgent(run, stage, options.processes, stop).follow(command, environment)


def _options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m launcher.processes.agent")
    parser.add_argument("--processes", type=int, required=True, help="training processes of this host")
    parser.add_argument("--threads", type=int, help="CPU threads per process; without: its share of the cores")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    return options, options.command


def _first_line(descriptor: int) -> dict[str, str]:
    """Read one line byte by byte, so that nothing of what follows is taken away; empty when the input is closed."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(descriptor, 1)):
        line += byte
    return json.loads(line) if line.strip() else {}


class HostAgent:
    """The processes of this host."""

    def __init__(self, run: RunFolder, stage: str, processes: int, stop: StopRequest) -> None:
        self._run, self._stage, self._processes, self._stop = run, run.stage(stage), processes, stop
        self._ranks: dict[int, psutil.Process] = {}
        self._heard = self._looked = time.monotonic()

    def follow(self, command: list[str], environment: dict[str, str]) -> int:
        """Start the command and stay with it; return its exit code, or 128 and the signal that ended it."""
        self._group = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            while self._group.poll() is None and self._held():
                if self._stop.count:
                    self._stage.stop_file.touch()
                self._note_losses()
            self._note_losses(at_once=True)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._group.pid, signal.SIGKILL)
            code = self._group.wait()
        return code if code >= 0 else 128 - code

    def _held(self) -> bool:
        """Listen for a moment; return whether somebody still wants the processes."""
        readable, _, _ = select.select([sys.stdin], [], [], POLL_S)
        if readable:
            words = os.read(sys.stdin.fileno(), 4096)
            if not words:
                return False
            self._heard = time.monotonic()
            if STOP in words:
                self._stage.stop_file.touch()
            if ABORT in words:
                self._abort()
        return time.monotonic() - self._heard < SILENCE_S

    def _note_losses(self, at_once: bool = False) -> None:
        """Leave a note for every rank of this host that has gone."""
        now = time.monotonic()
        if now - self._looked < (0 if at_once else POLL_S if len(self._ranks) == self._processes else LOOK_S):
            return
        self._looked = now
        if len(self._ranks) < self._processes:
            self._find_ranks()
        for rank, process in self._ranks.items():
            if not is_running(process):
                self._stage.loss_file(rank).touch()

    def _find_ranks(self) -> None:
        """Learn which processes under the command are ranks: those that have one and end in RUN_DIR STAGE."""
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._group.pid).children(recursive=True):
                with suppress(psutil.Error):
                    rank = process.environ().get("RANK")
                    if rank is not None and process.cmdline()[-2:] == [str(self._run.path), self._stage.name]:
                        self._ranks[int(rank)] = process

    def _abort(self) -> None:
        """Have every rank here write to its log what its threads are doing, and end."""
        self._find_ranks()
        running = [process for process in self._ranks.values() if is_running(process)]
        for process in running:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGABRT)
        psutil.wait_procs(running, timeout=ABORT_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
