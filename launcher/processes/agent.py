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
from launcher.processes.worker_command import inherited_environment, num_cores
from launcher.run_folder import RunFolder

# The messages on the standard input: still there; write your stacks and end; save and leave. Single bytes, so that a
# read cannot cut one in two.
ALIVE = b"."
ABORT = b"a"
STOP = b"s"
ALIVE_EVERY_S = 5.0
# Long enough for a machine that is busy or a launcher that was paused for a moment.
SILENCE_S = 120.0
POLL_S = 0.1
# Finding the ranks walks the process tree and reads environments, which costs more than a look at known processes.
FIND_RANKS_EVERY_S = 0.3
ABORT_S = 1.0
READ_BYTES = 4096


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m launcher.processes.agent")
    parser.add_argument("--processes", type=int, required=True, help="training processes of this host")
    parser.add_argument("--threads", type=int, help="CPU threads per process; without: its share of the cores")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)

    *_, run_path, stage = options.command
    run = RunFolder(Path(run_path))
    if not run.recipe_file.is_file():
        print(
            f"{os.uname().nodename} does not see the run folder {run.path}. Put it, with --run-dir, on a file system "
            "that all hosts share.",
            file=sys.stderr,
        )
        return exit_code(ConfigError())

    threads = options.threads or max(1, num_cores() // options.processes)
    environment = {
        **inherited_environment(os.environ),
        **_read_secrets(sys.stdin.fileno()),
        "OMP_NUM_THREADS": str(threads),
        "CHORUS_LAUNCHER_PID": str(os.getpid()),
    }
    # A signal to this host's processes is theirs to answer: they agree with those elsewhere, save and leave.
    with StopRequest().installed() as stop:
        agent = HostAgent(run, stage, options.processes, stop)
        return agent.follow(options.command, environment)


def _read_secrets(descriptor: int) -> dict[str, str]:
    """Read the first line byte by byte, so that nothing of what follows is taken away; empty from a closed input."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            break
        line += byte
    if not line.strip():
        return {}
    return json.loads(line)


class HostAgent:
    """The processes of this host."""

    def __init__(self, run: RunFolder, stage: str, processes: int, stop: StopRequest) -> None:
        self._run = run
        self._stage = run.stage(stage)
        self._processes = processes
        self._stop = stop
        self._ranks: dict[int, psutil.Process] = {}
        self._last_message = time.monotonic()
        self._last_check = self._last_message

    def follow(self, command: list[str], environment: dict[str, str]) -> int:
        """Start the command and stay with it; return its exit code, or 128 and the signal that ended it."""
        self._group = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            while self._group.poll() is None and self._is_held():
                if self._stop.count:
                    self._stage.stop_file.touch()
                every_s = POLL_S
                if len(self._ranks) < self._processes:
                    every_s = FIND_RANKS_EVERY_S
                if time.monotonic() - self._last_check >= every_s:
                    self._note_losses()
            # The last losses may be newer than the last look: they are what ended the command.
            self._note_losses()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._group.pid, signal.SIGKILL)
            code = self._group.wait()
        if code < 0:
            # As a shell says it: an exit code cannot be negative.
            return 128 - code
        return code

    def _is_held(self) -> bool:
        """Wait a moment for messages; return whether somebody still wants the processes."""
        readable, _, _ = select.select([sys.stdin], [], [], POLL_S)
        if readable:
            messages = os.read(sys.stdin.fileno(), READ_BYTES)
            if not messages:
                return False
            self._last_message = time.monotonic()
            if STOP in messages:
                self._stage.stop_file.touch()
            if ABORT in messages:
                self._abort()
        return time.monotonic() - self._last_message < SILENCE_S

    def _note_losses(self) -> None:
        """Leave a note for every rank of this host that has gone."""
        self._last_check = time.monotonic()
        if len(self._ranks) < self._processes:
            self._find_ranks()
        for rank, process in self._ranks.items():
            if not is_running(process):
                self._stage.loss_file(rank).touch()

    def _find_ranks(self) -> None:
        """Learn which processes under the command are ranks: those that have one and end in RUN_DIR STAGE."""
        # Any of them may end while it is looked at.
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
