"""Where the wall time of a training stage went: goodput is the share of it that is in the final weights.

Read from `events.jsonl`, which says when processes started, trained, were lost and ended, and from the rows of
`metrics.jsonl`, which hold the times of the steps that count: rows of steps that were lost are cut off on resuming.
What a launcher that was killed did after its last record is not counted.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from launcher.run_folder import RunFolder
from launcher.tracking import read_metrics

# A line of events.jsonl, and one of metrics.jsonl.
Event = dict[str, Any]
Row = dict[str, Any]

# More rows of a stage than these are thinned out.
MAX_ROWS = 10_000
ENDS = ("stage_done", "stage_stopped", "stage_failed")


@dataclass
class Goodput:
    """Seconds of a stage by what they were spent on; together its wall time.

    useful: steps that are in the weights. data_wait: waiting for batches of those. start: from the start of processes
    to their first step. validation, save: training stood still for them. finish: from the last step to the end. lost:
    work that was not kept, the time until its loss was noticed included. restart: from there to the next start. other:
    what is left.
    """

    useful: float = 0.0
    data_wait: float = 0.0
    start: float = 0.0
    validation: float = 0.0
    save: float = 0.0
    finish: float = 0.0
    lost: float = 0.0
    restart: float = 0.0
    other: float = 0.0

    @property
    def wall_s(self) -> float:
        return sum(asdict(self).values())

    def shares(self) -> dict[str, float]:
        """Each part as a fraction of the wall time."""
        seconds = asdict(self)
        wall_s = self.wall_s
        # Where processes have only just been started, no time has passed.
        if wall_s == 0.0:
            return dict.fromkeys(seconds, 0.0)
        shares = {}
        for name, part_s in seconds.items():
            shares[name] = part_s / wall_s
        return shares


@dataclass
class _Attempt:
    """One start of the processes; times are since the epoch, in s, None where it was not reached."""

    started: float
    training: float | None = None
    trained: float | None = None
    lost: float | None = None
    ended: float = 0.0

    @property
    def over(self) -> float:
        """When it did no more useful work: when it was lost, or its last record."""
        if self.lost is None:
            return self.ended
        return self.lost


@dataclass
class _Session:
    """One `chorus run` at the stage."""

    started: float
    ended: float
    attempts: list[_Attempt] = field(default_factory=list)


def stage_goodput(run: RunFolder, stage: str, events: Iterable[Event]) -> Goodput | None:
    """Account for a stage's wall time so far, from its metrics and the events of its run."""
    rows = read_metrics(run.stage(stage).metrics_file, thin_to=MAX_ROWS)
    return measure_goodput(events, rows, stage)


def measure_goodput(events: Iterable[Event], rows: Iterable[Row], stage: str) -> Goodput | None:
    """Account for a stage's wall time; None when no processes of it have started.

    `events` are those of the run, `rows` those of the stage's metrics.
    """
    stage_events = [event for event in events if event.get("stage") == stage]
    timed_rows = [row for row in rows if row.get("time") is not None]
    sessions = _read_sessions(stage_events, timed_rows)
    if not sessions:
        return None

    goodput = Goodput()
    for row in timed_rows:
        goodput.validation += row.get("validation_s") or 0.0
        goodput.save += row.get("save_stall_s") or 0.0
    wall_s = 0.0
    last_attempt = sessions[-1].attempts[-1]
    for session in sessions:
        wall_s += session.ended - session.started
        _add_starts_and_finish(goodput, session)
        for attempt in session.attempts:
            # The last one may be under way: what it did since its last checkpoint is not lost yet.
            if attempt is not last_attempt or attempt.lost is not None:
                goodput.lost += _lost_s(attempt, timed_rows)
    _add_steps(goodput, timed_rows, stage_events)

    goodput.other = wall_s - goodput.wall_s
    return goodput


def _read_sessions(events: list[Event], rows: list[Row]) -> list[_Session]:
    """The sessions of a stage in which processes were started, each with its attempts, as its events tell them."""
    sessions: list[_Session] = []
    for event in events:
        name = event["event"]
        time = event["time"]
        if name == "stage_started":
            sessions.append(_Session(started=time, ended=time))
            continue
        if not sessions:
            continue
        session = sessions[-1]
        session.ended = time
        if name == "processes_started":
            session.attempts.append(_Attempt(started=time))
        if not session.attempts:
            continue
        attempt = session.attempts[-1]
        attempt.ended = time
        if name == "training_started":
            attempt.training = time
        elif name == "training_ended":
            attempt.trained = time
        elif name == "process_lost":
            attempt.lost = time

    for number, session in enumerate(sessions):
        next_started = float("inf")
        if number + 1 < len(sessions):
            next_started = sessions[number + 1].started
        _extend_unended(session, next_started, events, rows)
    return [session for session in sessions if session.attempts]


def _extend_unended(session: _Session, next_started: float, events: list[Event], rows: list[Row]) -> None:
    """A session without an end goes on, or its launcher was killed: it lasted at least until its last row."""
    if not session.attempts:
        return
    for event in events:
        if event["event"] in ENDS and event["time"] == session.ended:
            return
    ended = session.ended
    for row in rows:
        if session.started <= row["time"] < next_started:
            ended = max(ended, row["time"])
    session.ended = ended
    session.attempts[-1].ended = ended


def _add_starts_and_finish(goodput: Goodput, session: _Session) -> None:
    """The time before each attempt, from its start to its first step, and after the last step of the last one."""
    before = session.started
    for number, attempt in enumerate(session.attempts):
        if number == 0:
            goodput.start += attempt.started - before
        else:
            goodput.restart += attempt.started - before
        # An attempt that reached no step spent all its time on starting.
        first_step = attempt.ended
        if attempt.training is not None:
            first_step = attempt.training
        goodput.start += first_step - attempt.started
        before = attempt.over
    last = session.attempts[-1]
    if last.trained is not None:
        goodput.finish += session.ended - last.trained


def _lost_s(attempt: _Attempt, rows: list[Row]) -> float:
    """Time of an attempt that nothing came of: from the checkpoint that is gone on from until its loss was noticed."""
    if attempt.training is None or attempt.trained is not None:
        return 0.0
    # Rows after the checkpoint were cut off on resuming, so the last row left is where the work is kept up to.
    kept_until = attempt.training
    for row in rows:
        if attempt.training <= row["time"] <= attempt.over:
            kept_until = max(kept_until, row["time"])
    return attempt.over - kept_until


def _add_steps(goodput: Goodput, rows: list[Row], events: list[Event]) -> None:
    """A row of training speaks for all steps since the one before, less those whose update is not in the weights."""
    # Intervals (after, up to) of such steps, though the run went on past them.
    dropped: list[tuple[int, int]] = []
    for event in events:
        # The second names are those of runs of earlier versions.
        if event["event"] in ("update_skipped", "update_left_out"):
            dropped.append((event["step"] - 1, event["step"]))
        elif event["event"] in ("rolled_back", "weights_taken_back"):
            dropped.append((event["to_step"], event["step"]))

    before = 0
    for row in rows:
        # Rows of validations and saves.
        if row.get("step_s") is None:
            continue
        num_lost = 0
        # Runs of a million steps mostly have no such interval, and then no step needs a look.
        if dropped:
            for step in range(before, row["step"]):
                if any(after <= step < up_to for after, up_to in dropped):
                    num_lost += 1
        num_useful = max(0, row["step"] - before) - num_lost
        waiting_s = row["step_s"] * (row.get("data_wait") or 0.0)
        goodput.lost += num_lost * row["step_s"]
        goodput.data_wait += num_useful * waiting_s
        goodput.useful += num_useful * (row["step_s"] - waiting_s)
        before = row["step"]
