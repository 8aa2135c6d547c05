"""The processes that work for a run: finding them, telling the hung and the lost from the slow, ending them.

Every process keeps a heartbeat file with its rank, step and section. Silence is judged here and nowhere else. Whether a
process of another host is gone, only the agent there can tell, by a note beside the heartbeats.
`python -m launcher.processes.watchdog end RUN_DIR STAGE` ends a stage's processes on the host that it is called on.
"""

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from launcher.run_folder import RunFolder, StageFolder

# Time for a process to write the stacks of its threads.
ABORT_S = 1.0
# Time for the kernel to end a killed process.
KILL_S = 10.0
# After a process is lost: time for the others to find out, and for the command to say how it ended.
LINGER_S = 3.0
# Agents note losses each in its own time: of two that are seen so close together, it is not known which came first.
TOGETHER_S = 0.5


@dataclass(frozen=True)
class Deadlines:
    """Times in s: until all report, of silence by section, to save and leave when stopped, to leave when told to."""

    startup_s: float = 300.0
    stall_s: float = 120.0
    validation_s: float = 300.0
    save_s: float = 600.0
    stop_s: float = 30.0
    terminate_s: float = 10.0

    def silence_s(self, section: str) -> float:
        """How long a process may be silent in a section."""
        special = {"start": self.startup_s, "validate": self.validation_s, "save": self.save_s}
        return special.get(section, self.stall_s)


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended: the reason in words, the rank that failed first, its or the command's exit code."""

    reason: str
    rank: int | None = None
    code: int | None = None


def processes_of(run: RunFolder, stage: str | None = None) -> list[psutil.Process]:
    """Return the live processes here that work for a run: those whose arguments end in RUN_DIR STAGE."""
    found = []
    for process in psutil.process_iter():
        try:
            arguments = process.cmdline()
            ours = len(arguments) > 2 and arguments[-2] == str(run.path) and stage in (None, arguments[-1])
            if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue  # it ended while it was looked at, or is another user's
    return found


def end_processes(run: RunFolder, stage: str | None = None, terminate_s: float = 10.0) -> int:
    """Terminate, then kill, every process that works for a run; return how many there were."""
    found = processes_of(run, stage)
    for process in found:
        _quietly(process.terminate)
    for process in _still_running(found, terminate_s):
        _quietly(process.kill)
    _still_running(found, KILL_S)
    return len(found)


def _still_running(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait for processes to end and return those that did not; a zombie has ended, collected or not."""
    until = time.monotonic() + timeout_s
    while (running := [process for process in processes if is_running(process)]) and time.monotonic() < until:
        time.sleep(0.05)
    return running


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _quietly(end: Callable[..., Any], *arguments: Any) -> None:
    with suppress(psutil.NoSuchProcess):
        end(*arguments)


class Watchdog:
    """What the heartbeats of one attempt say: who is silent, and who was lost first."""

    def __init__(self, stage: StageFolder, processes: int, deadlines: Deadlines) -> None:
        self._stage, self._processes, self._deadlines = stage, processes, deadlines
        self._started = time.monotonic()
        # Silence is measured by this process's own clock: a clock that is set does not look like it.
        self._changed: dict[int, tuple[float, dict[str, Any]]] = {}
        self.lost: list[int] = []
        self._lost_at: dict[int, float] = {}  # by the same clock

    def look(self) -> Failure | None:
        """Read the heartbeats; a Failure when a process is silent, does not appear, or was lost."""
        now = time.monotonic()
        gone, noted = [], self._stage.read_losses()
        for beat in self._stage.read_heartbeats():
            rank = beat["rank"]
            if rank not in self._changed or self._changed[rank][1] != beat:
                self._changed[rank] = now, beat
            if rank not in self.lost and (rank in noted or not _runs(beat)):
                gone.append(rank)
        if gone:
            self._lost_at |= dict.fromkeys(gone, now)
            # Of those that went together, the last to write went last: it tells of another's loss.
            before = [rank for rank in self.lost if now - self._lost_at[rank] > TOGETHER_S]
            together = [rank for rank in self._lost_at if rank not in before]
            self.lost = before + sorted(together, key=self._last_written)
        return self._silent(now) or self._absent(now) or self._gone(now)

    def exit_code(self, rank: int) -> int | None:
        """The exit code that a process announced; None when it was not its own will to leave."""
        return self._changed[rank][1].get("exit_code")

    def abort(self) -> None:
        """Have every process on this host write to its log what its threads are doing, and end (SIGABRT)."""
        present = [beat for _, beat in self._changed.values() if _is_here(beat) and _runs(beat)]
        told = [psutil.Process(beat["pid"]) for beat in present]
        for process in told:
            _quietly(process.send_signal, signal.SIGABRT)
        _still_running(told, ABORT_S)

    def _last_written(self, rank: int) -> float:
        log = self._stage.rank_log(rank)
        return log.stat().st_mtime if log.exists() else 0.0

    def _silent(self, now: float) -> Failure | None:
        silent = [
            (changed, beat)
            for rank, (changed, beat) in self._changed.items()
            if rank not in self.lost and now - changed > self._deadlines.silence_s(beat["section"])
        ]
        if not silent:
            return None
        # The one that hangs stopped before those that wait for it.
        changed, beat = min(silent, key=lambda pair: (not _is_stopped(pair[1]), pair[1]["step"], pair[0]))
        return Failure(
            f"rank {beat['rank']} on {beat['host']} was silent for {now - changed:.0f} s at step {beat['step']}, in "
            f"{beat['section']} (process {beat['pid']}; deadline {self._deadlines.silence_s(beat['section']):g} s)",
            beat["rank"],
        )

    def _gone(self, now: float) -> Failure | None:
        """The loss of a process that its command does not act on: the others wait for it in vain."""
        ended = self._stage.done_file.name in self._stage.names()  # the first process writes it, then all leave
        if not self.lost or ended or now - min(self._lost_at.values()) <= LINGER_S:
            return None
        return Failure(self.describe_lost(self.lost[0]), self.lost[0], self.exit_code(self.lost[0]))

    def describe_lost(self, rank: int) -> str:
        _, beat = self._changed[rank]
        how = f"left with exit code {beat['exit_code']}" if "exit_code" in beat else "was lost"
        return f"rank {rank} on {beat['host']} {how} at step {beat['step']}, in {beat['section']}"

    def _absent(self, now: float) -> Failure | None:
        absent = sorted(set(range(self._processes)) - set(self._changed))
        if not absent or now - self._started <= self._deadlines.startup_s:
            return None
        return Failure(
            f"rank {', '.join(map(str, absent))} did not report within {self._deadlines.startup_s:g} s",
            absent[0],
        )


def _is_here(beat: dict[str, Any]) -> bool:
    return beat["host"] == socket.gethostname()


def _runs(beat: dict[str, Any]) -> bool:
    if not _is_here(beat):
        return True  # its agent says when it is not; without an agent it falls silent
    try:
        return is_running(psutil.Process(beat["pid"]))
    except psutil.NoSuchProcess:
        return False


def _is_stopped(beat: dict[str, Any]) -> bool:
    if not _is_here(beat):
        return False
    try:
        return psutil.Process(beat["pid"]).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def main(arguments: list[str]) -> int:
    """End a stage's processes on this host, and print how many there were."""
    parser = argparse.ArgumentParser(prog="python -m launcher.processes.watchdog")
    parser.add_argument("action", choices=["end"])
    parser.add_argument("run", help="run folder")
    parser.add_argument("stage")
    # Last on the command line too, or this process would look like one that works for the stage.
    parser.add_argument("--terminate-s", type=float, default=10.0, help="time between SIGTERM and SIGKILL")
    options = parser.parse_args(arguments)
    print(end_processes(RunFolder(options.run), options.stage, options.terminate_s))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
