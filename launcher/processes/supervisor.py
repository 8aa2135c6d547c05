"""Starts the processes of one stage, watches them, and ends them.

The `deepspeed` command can leave with exit code 0 while its processes live on, and does not pass signals on in
order; so nothing of that is relied on. A stage has succeeded when its command left with 0 and the stage's own record
says so. A process that stays silent past its deadline, or is lost, ends the attempt: the others write what they were
doing to their logs, everything is ended, and the stage starts again from its newest checkpoint, as often within an
hour as the recipe allows. Stopping is a file that the processes agree on at a step; then a kill.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data.errors import DataError
from launcher.errors import CheckpointError, ConfigError, DistributedError, DivergedError, Preempted, exit_code
from launcher.monitoring.progress import Display, MetricsTail
from launcher.processes.agent import ABORT, STOP
from launcher.processes.process_group import Launch, ProcessGroup
from launcher.processes.stop_request import StopRequest
from launcher.processes.watchdog import Deadlines, Failure, Watchdog, end_processes
from launcher.run_folder import RunFolder, StageFolder, read_json, write_json, write_text

POLL_S = 0.2
LOG_LINES_SHOWN = 15
BUDGET_S = 3600.0
LONGEST_PAUSE_S = 60.0
# What no restart can mend, by the exit code of a worker.
LASTING_ERRORS = {exit_code(kind()): kind for kind in (ConfigError, DataError, CheckpointError, DivergedError)}


@dataclass(frozen=True)
class Job:
    """The processes of one stage.

    start returns the commands of an attempt, made anew for every one because a port found free may be taken
    later. processes is how many must report; 0 when the stage keeps no heartbeats. succeeded looks at the
    stage's record. end_elsewhere ends the stage's processes on other hosts, after so many seconds by a kill, and
    returns how many there were.
    """

    stage: StageFolder
    start: Callable[[], Launch]
    processes: int
    succeeded: Callable[[], bool]
    steps: int
    later_steps: int = 0
    restarts: int = 3
    deadlines: Deadlines = field(default_factory=Deadlines)
    end_elsewhere: Callable[[float], int] = lambda terminate_s: 0


def supervise(job: Job, run: RunFolder, stop: StopRequest, display: Display) -> None:
    """Run a stage to its end, restarting it after a loss.

    Raises Preempted when it was stopped, DistributedError when the restarts are used up, and the worker's own
    ConfigError, DataError, CheckpointError or DivergedError, which no restart can mend.
    """
    left_over = job.end_elsewhere(job.deadlines.terminate_s)
    left_over += end_processes(run, job.stage.name, job.deadlines.terminate_s)
    if left_over:
        display.say(f"{job.stage.name}: ended {left_over} processes that an earlier launcher had left behind")
        run.append_event("leftovers_ended", stage=job.stage.name, processes=left_over)
    restarts = _Restarts(job, stop)
    clean = True
    while True:
        stop.check()
        attempt = _Attempt(job, run, stop, display, clean)
        failure, clean = attempt.run(), attempt.clean
        if failure is None:
            return
        newest = max(job.stage.checkpoint_steps(), default=0)
        run.append_event(
            "process_lost" if attempt.started else "host_out_of_reach",
            stage=job.stage.name,
            rank=failure.rank,
            reason=failure.reason,
            checkpoint_step=newest,
        )
        if failure.code in LASTING_ERRORS:
            raise LASTING_ERRORS[failure.code](f"Stage {job.stage.name} cannot go on. {_log_end(job.stage, failure)}")
        if not restarts.left():
            raise DistributedError(_used_up(job, failure, newest))
        number = restarts.count() + 1
        display.say(f"{job.stage.name}: {failure.reason}; restart {number} of {job.restarts} from step {newest}")
        restarts.wait(newest)
        run.append_event("restart", stage=job.stage.name, restart=number, from_step=newest)


class _Restarts:
    """The restarts of a stage within the last hour, and the pause before the next one."""

    def __init__(self, job: Job, stop: StopRequest) -> None:
        self._job, self._stop = job, stop
        self._times: list[float] = []
        self._fruitless, self._last_step = 0, -1

    def count(self) -> int:
        return sum(time.monotonic() - at < BUDGET_S for at in self._times)

    def left(self) -> bool:
        return self.count() < self._job.restarts

    def wait(self, newest_step: int) -> None:
        """Pause, twice as long each time that no checkpoint was gained; at once where one was. Ends with a stop."""
        self._fruitless = self._fruitless + 1 if newest_step == self._last_step else 0
        self._last_step = newest_step
        until = time.monotonic() + min(LONGEST_PAUSE_S, 2.0**self._fruitless - 1)
        while time.monotonic() < until and not self._stop.count:
            time.sleep(POLL_S)
        self._times.append(time.monotonic())


def _used_up(job: Job, failure: Failure, newest: int) -> str:
    return (
        f"Stage {job.stage.name} failed and its {job.restarts} restarts within an hour (cluster.max_restarts) are used "
        "up: "
        f"{failure.reason}. The newest checkpoint is of step {newest}; the same command goes on from there. "
        f"{_log_end(job.stage, failure)}"
    )


def _log_end(stage: StageFolder, failure: Failure) -> str:
    """Return the end of the log of the rank that failed first; without one, of what the commands said."""
    logs = [stage.launcher_log, stage.rank_log(0)]
    if failure.rank is not None:
        logs.insert(0, stage.rank_log(failure.rank))
    log = next((path for path in logs if path.exists() and path.stat().st_size), None)
    if log is None:
        return f"Nothing was written to {stage.logs}."
    return f"Last lines of {log}:\n{last_lines(log, LOG_LINES_SHOWN)}"


def last_lines(path: Path, number: int) -> str:
    """Return the last lines of a text file, indented."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 16384))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-number:])


class _Attempt:
    """One start of a stage's processes."""

    def __init__(self, job: Job, run: RunFolder, stop: StopRequest, display: Display, clean: bool) -> None:
        """`clean` says, before and after, whether it is certain that no process of an attempt is left anywhere."""
        self._job, self._run, self._stop, self._display = job, run, stop, display
        self._stage, self.clean, self.started = job.stage, clean, False
        self._watch = Watchdog(job.stage, job.processes, job.deadlines)
        self._tail = MetricsTail(job.stage.metrics_file)

    def run(self) -> Failure | None:
        """Start, watch and end the processes; None when the stage is done."""
        if not self.clean and (failure := self._end_elsewhere()):
            return failure
        self._clear()
        self.started = True
        launch = self._job.start()
        for path, text in launch.files.items():
            write_text(path, text)
        write_json(self._stage.launch_file, launch.record())
        self._run.append_event(
            "processes_started",
            stage=self._stage.name,
            processes=self._job.processes,
            hosts=launch.ranks,
        )
        self._display.begin(self._stage.name, self._job.steps, self._job.later_steps)
        self._processes = ProcessGroup(launch.commands, self._stage.launcher_log)
        try:
            return self._follow()
        finally:
            self._end()
            self._display.end()

    def _clear(self) -> None:
        """Remove what an earlier attempt left, so that nothing of it is taken for this one's."""
        shutil.rmtree(self._stage.heartbeats, ignore_errors=True)
        for folder in (self._stage.heartbeats, self._stage.logs):
            folder.mkdir(parents=True, exist_ok=True)
        self._stage.stop_file.unlink(missing_ok=True)
        self._stage.done_file.unlink(missing_ok=True)

    def _follow(self) -> Failure | None:
        while self._processes.poll() is None:
            time.sleep(POLL_S)
            self._display.update(self._tail.new_rows())
            failure = self._watch.look()
            if failure and not self._stop.count:
                self._processes.tell(ABORT)
                self._watch.abort()
                return failure
            if self._stop.count:
                self._wait_for_stop()
                break
        return self._verdict()

    def _wait_for_stop(self) -> None:
        """Ask the processes to save and leave, and wait for it until the deadline or a second signal."""
        signals, deadlines = self._stop.count, self._job.deadlines
        until = time.monotonic() + deadlines.stop_s
        self._stage.stop_file.touch()
        self._processes.tell(STOP)
        if deadlines.stop_s:
            self._display.say(
                f"{self._stage.name}: stopping; up to {deadlines.stop_s:g} s to save, at once if asked again"
            )
        while self._processes.poll() is None and time.monotonic() < until and self._stop.count == signals:
            time.sleep(POLL_S)
            self._display.update(self._tail.new_rows())

    def _verdict(self) -> Failure | None:
        code = self._processes.poll()
        self._stage.names()  # what other hosts wrote is seen from here on
        if code == 0 and self._job.succeeded():
            return None
        record = read_json(self._stage.done_file) or {}
        if self._stop.count or record.get("status") == "stopped" or code == exit_code(Preempted()):
            newest = max(self._stage.checkpoint_steps(), default=None)
            kept = "" if newest is None else f"; its newest checkpoint is of step {newest}"
            raise Preempted(f"Stage {self._stage.name} is stopped{kept}.")
        self._watch.look()
        if self._watch.lost and code:
            first = self._watch.lost[0]
            return Failure(self._watch.describe_lost(first), first, self._watch.exit_code(first) or code)
        return Failure(self._processes.reason(), None, code)

    def _end(self) -> None:
        """Kill every process of the attempt, in the command's group or out of it; what they had to save is saved."""
        self.clean = self._processes.end()
        if not self.clean:
            self._end_elsewhere()
        end_processes(self._run, self._stage.name, terminate_s=0)

    def _end_elsewhere(self) -> Failure | None:
        """End what may be left on other hosts, whose processes would write into the folder of the next attempt's."""
        try:
            self._job.end_elsewhere(0)
        except ConfigError as error:
            return Failure(str(error))
        self.clean = True
        return None
