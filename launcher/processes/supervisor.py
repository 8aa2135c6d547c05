"""Starts the processes of one stage, watches them, and ends them.

The `deepspeed` command can leave with exit code 0 while its processes live on, and does not pass signals on in
order; so nothing of that is relied on. A stage has succeeded when its command left with 0 and the stage's own record
says so. A process that stays silent past its deadline, or is lost, ends the attempt: the others write what they were
doing to their logs, everything is ended, and the stage starts again from its newest checkpoint, as often within an
hour as the recipe allows. Stopping is a file that the processes agree on at a step; then a kill.

Of an attempt that failed, the user sees the error that came first, as the worker that had it recorded it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data.errors import DataError
from data.files import remove_path
from launcher.errors import CheckpointError, ConfigError, DistributedError, DivergedError, Preempted, exit_code
from launcher.monitoring.progress import Display, MetricsTail
from launcher.processes.agent import ABORT, STOP
from launcher.processes.process_group import Launch, ProcessGroup
from launcher.processes.run_processes import make_token
from launcher.processes.stop_request import StopRequest
from launcher.processes.watchdog import Deadlines, Failure, Watchdog, end_processes
from launcher.processes.worker_error import WorkerError, first_error
from launcher.run_files import read_done
from launcher.run_folder import RunFolder, StageFolder, write_json, write_text

POLL_S = 0.2
LOG_LINES_SHOWN = 15
# Enough for the lines shown, also of a log that has grown to gigabytes.
LOG_BYTES_READ = 16384
# cluster.max_restarts counts the restarts within this time: a run of weeks may meet many losses, far apart.
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
    name = job.stage.name
    num_ended = job.end_elsewhere(job.deadlines.terminate_s)
    num_ended += end_processes(run, name, job.deadlines.terminate_s)
    if num_ended:
        display.say(f"{name}: ended {num_ended} processes that an earlier launcher had left behind")
        run.append_event("leftovers_ended", stage=name, processes=num_ended)

    # After what an earlier version left behind, which knew no token, is ended.
    make_token(run)
    restarts = _Restarts(job, stop)
    all_ended = True
    while True:
        stop.check()
        attempt = _Attempt(job, run, stop, display, all_ended)
        failure = attempt.run()
        all_ended = attempt.all_ended
        if failure is None:
            return

        newest_step = max(job.stage.checkpoint_steps(), default=0)
        event = "host_out_of_reach"
        error = None
        if attempt.started:
            event = "process_lost"
            error = _find_cause(job.stage, failure)
        run.append_event(event, stage=name, rank=failure.rank, reason=failure.reason, checkpoint_step=newest_step)

        # What a restart would only meet again. A user's error keeps the message that its worker gave it.
        if error and error.exit_code in LASTING_ERRORS:
            raise LASTING_ERRORS[error.exit_code](error.message)
        details = _describe(job.stage, failure, error)
        if failure.code in LASTING_ERRORS:
            raise LASTING_ERRORS[failure.code](f"Stage {name} cannot go on. {details}")
        if not restarts.left():
            raise DistributedError(
                f"Stage {name} failed and its {job.restarts} restarts within an hour (cluster.max_restarts) are used "
                f"up: {failure.reason}. The newest checkpoint is of step {newest_step}; the same command goes on from "
                f"there. {details}"
            )
        number = restarts.count() + 1
        display.say(f"{name}: {failure.reason}; restart {number} of {job.restarts} from step {newest_step}")
        restarts.wait(newest_step)
        run.append_event("restart", stage=name, restart=number, from_step=newest_step)


class _Restarts:
    """The restarts of a stage within the last hour, and the pause before the next one."""

    def __init__(self, job: Job, stop: StopRequest) -> None:
        self._job = job
        self._stop = stop
        self._times: list[float] = []
        self._without_progress = 0
        self._last_step = -1

    def count(self) -> int:
        now = time.monotonic()
        return sum(now - at < BUDGET_S for at in self._times)

    def left(self) -> bool:
        return self.count() < self._job.restarts

    def wait(self, newest_step: int) -> None:
        """Pause, twice as long each time that no checkpoint was gained; at once where one was. Ends with a stop."""
        if newest_step == self._last_step:
            self._without_progress += 1
        else:
            self._without_progress = 0
        self._last_step = newest_step

        pause_s = min(LONGEST_PAUSE_S, 2.0**self._without_progress - 1)
        until = time.monotonic() + pause_s
        while time.monotonic() < until and not self._stop.count:
            time.sleep(POLL_S)
        self._times.append(time.monotonic())


def _find_cause(stage: StageFolder, failure: Failure) -> WorkerError | None:
    """Return the error that came first, None when what came first left no error."""
    error = first_error(stage)
    if error is None:
        return None
    # A killed process leaves no error. Those of its peers may only tell of its loss, which a restart mends.
    was_killed = failure.rank is not None and not stage.error_file(failure.rank).exists()
    would_end_the_run = error.exit_code in LASTING_ERRORS and error.exit_code != failure.code
    if was_killed and (error.is_lost_peer() or would_end_the_run):
        return None
    return error


def _describe(stage: StageFolder, failure: Failure, error: WorkerError | None) -> str:
    """Return the error of an attempt; without one, the end of the log of the rank that failed first."""
    if error:
        return error.describe(stage.rank_log(error.rank))

    logs = [stage.launcher_log, stage.rank_log(0)]
    if failure.rank is not None:
        logs.insert(0, stage.rank_log(failure.rank))
    for log in logs:
        if log.exists() and log.stat().st_size:
            return f"Last lines of {log}:\n{last_lines(log, LOG_LINES_SHOWN)}"
    return f"Nothing was written to {stage.logs}."


def last_lines(path: Path, number: int) -> str:
    """Return the last lines of a text file, indented."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES_READ))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-number:])


class _Attempt:
    """One start of a stage's processes."""

    def __init__(self, job: Job, run: RunFolder, stop: StopRequest, display: Display, all_ended: bool) -> None:
        """`all_ended` says, before and after, whether it is certain that no process of an attempt is left anywhere."""
        self.all_ended = all_ended
        self.started = False
        self._job = job
        self._run = run
        self._stop = stop
        self._display = display
        self._stage = job.stage
        self._watchdog = Watchdog(job.stage, job.processes, job.deadlines)
        self._metrics = MetricsTail(job.stage.metrics_file)

    def run(self) -> Failure | None:
        """Start, watch and end the processes; None when the stage is done."""
        if not self.all_ended:
            failure = self._end_elsewhere()
            if failure:
                return failure

        # Nothing of an earlier attempt may be taken for this one's.
        remove_path(self._stage.heartbeats)
        self._stage.heartbeats.mkdir(parents=True, exist_ok=True)
        self._stage.logs.mkdir(parents=True, exist_ok=True)
        for path in self._stage.error_files():
            path.unlink(missing_ok=True)
        self._stage.stop_file.unlink(missing_ok=True)
        self._stage.done_file.unlink(missing_ok=True)

        self.started = True
        launch = self._job.start()
        for path, text in launch.files.items():
            write_text(path, text)
        write_json(self._stage.launch_file, launch.record(), private=True)
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
            # What the processes had to save is saved. Some may have left the command's group.
            self.all_ended = self._processes.end()
            if not self.all_ended:
                self._end_elsewhere()
            end_processes(self._run, self._stage.name, terminate_s=0)
            self._display.end()

    def _follow(self) -> Failure | None:
        while self._processes.poll() is None:
            time.sleep(POLL_S)
            self._display.update(self._metrics.new_rows())
            failure = self._watchdog.check()
            if failure and not self._stop.count:
                # Agents have their hosts' processes write their stacks; those of this host are ours.
                self._processes.send(ABORT)
                self._watchdog.abort()
                return failure
            if self._stop.count:
                self._wait_for_stop()
                break
        return self._outcome()

    def _wait_for_stop(self) -> None:
        """Ask the processes to save and leave, and wait for it until the deadline or a second signal."""
        num_signals = self._stop.count
        stop_s = self._job.deadlines.stop_s
        until = time.monotonic() + stop_s
        self._stage.stop_file.touch()
        self._processes.send(STOP)
        if stop_s:
            self._display.say(f"{self._stage.name}: stopping; up to {stop_s:g} s to save, at once if asked again")
        while self._processes.poll() is None and time.monotonic() < until and self._stop.count == num_signals:
            time.sleep(POLL_S)
            self._display.update(self._metrics.new_rows())

    def _outcome(self) -> Failure | None:
        """Return None for a stage that is done, else why it is not; Preempted when it was stopped."""
        code = self._processes.poll()
        # Listing the folder makes a network file system show what other hosts wrote.
        self._stage.names()
        if code == 0 and self._job.succeeded():
            return None

        record = read_done(self._stage)
        if self._stop.count or record.get("status") == "stopped" or code == exit_code(Preempted()):
            steps = self._stage.checkpoint_steps()
            if steps:
                raise Preempted(f"Stage {self._stage.name} is stopped; its newest checkpoint is of step {steps[-1]}.")
            raise Preempted(f"Stage {self._stage.name} is stopped.")

        # A last look: the process whose end made the command leave may have gone since the one before.
        self._watchdog.check()
        if self._watchdog.lost and code:
            first = self._watchdog.lost[0]
            return Failure(self._watchdog.describe_lost(first), first, self._watchdog.exit_code(first) or code)
        return Failure(self._processes.reason(), None, code)

    def _end_elsewhere(self) -> Failure | None:
        """End what may be left on other hosts, whose processes would write into the folder of the next attempt's."""
        try:
            self._job.end_elsewhere(0)
        except ConfigError as error:
            return Failure(str(error))
        self.all_ended = True
        return None
