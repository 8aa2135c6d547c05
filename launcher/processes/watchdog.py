"""The processes that work for a run: finding them, telling the hung and the lost from the slow, ending them.

Every process keeps a heartbeat file with its rank, step and section. Silence is judged here and nowhere else, so that
collectives themselves wait longer than any of these deadlines. A silent process that may be waiting for a slower one
is not to blame as long as that one reports. Whether a process of another host is gone, only the agent there can tell,
by a note beside the heartbeats.
`python -m launcher.processes.watchdog end RUN_DIR STAGE` ends a stage's processes on the host that it is called on.
"""

import argparse
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from launcher.processes.remote_answer import print_answer
from launcher.processes.run_processes import processes_of
from launcher.run_folder import RunFolder, StageFolder

# Time for a process to write the stacks of its threads.
ABORT_S = 1.0
# Time for the kernel to end a killed process.
KILL_S = 10.0
# After a process is lost: time for the others to find out, and for the command to say how it ended.
LINGER_S = 3.0
# Between two looks at whether processes have ended.
POLL_S = 0.05
# When a process comes to its sections, of those at the same step.
PLACES = {"start": 0, "units": 0, "restore": 1, "validate": 2, "save": 3, "data": 4, "train": 5, "evaluate": 6}
# Agents note losses each in its own time: of two that are seen so close together, it is not known which came first.
TOGETHER_S = 0.5


@dataclass(frozen=True)
class Deadlines:
    """Times in s: until all report, of silence by section, to save and leave when stopped, to leave when told to."""

    startup_s: float = 300.0
    stall_s: float = 120.0
    validation_s: float = 300.0
    save_s: float = 600.0
    evaluation_s: float = 600.0
    stop_s: float = 30.0
    terminate_s: float = 10.0

    def silence_s(self, section: str) -> float:
        """How long a process may be silent in a section."""
        if section in ("start", "units"):
            return self.startup_s
        if section == "validate":
            return self.validation_s
        if section in ("save", "restore"):
            return self.save_s
        if section == "evaluate":
            return self.evaluation_s
        return self.stall_s


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended: the reason in words, the rank that failed first, its or the command's exit code."""

    reason: str
    rank: int | None = None
    code: int | None = None


def end_processes(run: RunFolder, stage: str | None = None, terminate_s: float = 10.0) -> int:
    """Terminate, then kill, every process that works for a run; return how many there were."""
    processes = processes_of(run, stage)
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    for process in _wait(processes, terminate_s):
        with suppress(psutil.Error):
            process.kill()
    _wait(processes, KILL_S)
    return len(processes)


def _wait(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait for processes to end and return those that did not; a zombie has ended, collected or not."""
    until = time.monotonic() + timeout_s
    running = [process for process in processes if is_running(process)]
    while running and time.monotonic() < until:
        time.sleep(POLL_S)
        running = [process for process in running if is_running(process)]
    return running


def is_running(process: psutil.Process) -> bool:
    """Whether a process of this user has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    # Where the system hides processes of others, what may not be looked at is none of this user.
    except psutil.Error:
        return False


class Watchdog:
    """What the heartbeats of one attempt say: who is silent, and who was lost first."""

    def __init__(self, stage: StageFolder, processes: int, deadlines: Deadlines) -> None:
        self.lost: list[int] = []
        self._stage = stage
        self._processes = processes
        self._deadlines = deadlines
        self._started = time.monotonic()
        # The last heartbeat of each rank, and when it was first seen. Silence is measured by this process's own clock:
        # a clock that is set does not look like it.
        self._heartbeats: dict[int, dict[str, Any]] = {}
        self._seen_at: dict[int, float] = {}
        self._lost_at: dict[int, float] = {}

    def check(self) -> Failure | None:
        """Read the heartbeats; a Failure when a process is silent, does not appear, or was lost."""
        now = time.monotonic()
        noted_losses = self._stage.read_losses()
        num_lost = len(self._lost_at)
        for heartbeat in self._stage.read_heartbeats():
            rank = heartbeat["rank"]
            if self._heartbeats.get(rank) != heartbeat:
                self._heartbeats[rank] = heartbeat
                self._seen_at[rank] = now
            if rank not in self._lost_at and (rank in noted_losses or not _runs(heartbeat)):
                self._lost_at[rank] = now
        if len(self._lost_at) > num_lost:
            # Of those that went together, the last to write went last: it tells of another's loss.
            earlier = [rank for rank in self.lost if now - self._lost_at[rank] > TOGETHER_S]
            together = [rank for rank in self._lost_at if rank not in earlier]
            self.lost = earlier + sorted(together, key=self._last_written)

        # A silent process comes before a lost one: the loss may be what the silence led to.
        failure = self._find_silent(now)
        if failure:
            return failure

        absent = [rank for rank in range(self._processes) if rank not in self._heartbeats]
        if absent and now - self._started > self._deadlines.startup_s:
            ranks = ", ".join(map(str, absent))
            return Failure(f"rank {ranks} did not report within {self._deadlines.startup_s:g} s", absent[0])

        # A loss that the command does not act on: the others wait for that process in vain. The first process writes
        # the stage's record, then all leave: those are no losses.
        if not self.lost or now - min(self._lost_at.values()) <= LINGER_S:
            return None
        if self._stage.done_file.name in self._stage.names():
            return None
        first = self.lost[0]
        return Failure(self.describe_lost(first), first, self.exit_code(first))

    def exit_code(self, rank: int) -> int | None:
        """The exit code that a process announced; None when it did not leave by itself."""
        return self._heartbeats[rank].get("exit_code")

    def abort(self) -> None:
        """Have every process on this host write to its log what its threads are doing, and end (SIGABRT)."""
        # A heartbeat is a file: whoever may write into the folder could name any process of this user in it.
        of_stage = processes_of(RunFolder(self._stage.path.parent), self._stage.name)
        process_ids = {heartbeat["pid"] for heartbeat in self._heartbeats.values() if _is_here(heartbeat)}
        processes = [process for process in of_stage if process.pid in process_ids]
        for process in processes:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGABRT)
        _wait(processes, ABORT_S)

    def describe_lost(self, rank: int) -> str:
        heartbeat = self._heartbeats[rank]
        how = "was lost"
        if "exit_code" in heartbeat:
            how = f"left with exit code {heartbeat['exit_code']}"
        return f"rank {rank} on {heartbeat['host']} {how} at step {heartbeat['step']}, in {heartbeat['section']}"

    def _last_written(self, rank: int) -> float:
        log = self._stage.rank_log(rank)
        if not log.exists():
            return 0.0
        return log.stat().st_mtime

    def _find_silent(self, now: float) -> Failure | None:
        silent = []
        reporting = []
        for rank, heartbeat in self._heartbeats.items():
            deadline_s = self._deadlines.silence_s(heartbeat["section"])
            if rank in self.lost:
                continue
            if now - self._seen_at[rank] > deadline_s:
                silent.append(rank)
            else:
                reporting.append(_position(heartbeat))

        suspects = []
        for rank in silent:
            heartbeat = self._heartbeats[rank]
            position = _position(heartbeat)
            is_stopped = _is_stopped(heartbeat)
            # Of processes that meet in collectives, one that is ahead, or as far, waits for those that still work.
            may_wait = any(other <= position for other in reporting)
            if is_stopped or not may_wait:
                # The one that hangs stopped before those that wait for it: frozen first, then by place, then by time.
                order = (not is_stopped, position, self._seen_at[rank])
                suspects.append((order, rank))
        if not suspects:
            return None

        _, rank = min(suspects)
        heartbeat = self._heartbeats[rank]
        deadline_s = self._deadlines.silence_s(heartbeat["section"])
        return Failure(
            f"rank {rank} on {heartbeat['host']} was silent for {now - self._seen_at[rank]:.0f} s at step "
            f"{heartbeat['step']}, in {heartbeat['section']} (process {heartbeat['pid']}; deadline {deadline_s:g} s)",
            rank,
        )


def _position(heartbeat: dict[str, Any]) -> tuple[int, int]:
    """How far a process has come: its step, and the place of its section within a step."""
    return heartbeat["step"], PLACES.get(heartbeat["section"], 0)


def _is_here(heartbeat: dict[str, Any]) -> bool:
    return heartbeat["host"] == socket.gethostname()


def _runs(heartbeat: dict[str, Any]) -> bool:
    if not _is_here(heartbeat):
        # Its agent notes when it does not; without an agent it falls silent.
        return True
    try:
        return is_running(psutil.Process(heartbeat["pid"]))
    except psutil.Error:
        return False


def _is_stopped(heartbeat: dict[str, Any]) -> bool:
    if not _is_here(heartbeat):
        return False
    try:
        return psutil.Process(heartbeat["pid"]).status() == psutil.STATUS_STOPPED
    except psutil.Error:
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
    print_answer(end_processes(RunFolder(options.run), options.stage, options.terminate_s))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
