"""Where the wall time of a training stage went: goodput is the share of it that is in the final weights.

Read from `events.jsonl`, which says when processes started, trained, were lost and ended, and from the rows of
`metrics.jsonl`, which hold the times of the steps that count: rows of steps that were lost are cut off on resuming.
What a launcher that was killed did after its last record is not counted.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from launcher.run_folder import RunFolder
from launcher.tracking import read_metrics

# More rows of a stage than these are thinned out.
MOST_ROWS = 10_000
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
        wall_s = self.wall_s
        return {part.name: getattr(self, part.name) / wall_s if wall_s else 0.0 for part in fields(self)}


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
        """When nothing came of it any more: its loss, or its last record."""
        return self.ended if self.lost is None else self.lost


@dataclass
class _Session:
    """One `chorus run` at the stage."""

    started: float
    ended: float
    attempts: list[_Attempt] = field(default_factory=list)


def stage_goodput(run: RunFolder, stage: str, events: Iterable[dict[str, Any]]) -> Goodput | None:
    """Account for a stage's wall time so far, from its metrics and the events of its run."""
    return measure_goodput(events, read_metrics(run.stage(stage).metrics_file, thin_to=MOST_ROWS), stage)


def measure_goodput(events: Iterable[dict[str, Any]], rows: Iterable[dict[str, Any]], stage: str) -> Goodput | None:
    """Account for a stage's wall time; None when no processes of it have started.

    `events` are those of the run, `rows` those of the stage's metrics.
    """
    rows = [row for row in rows if row.get("time") is not None]
    sessions = _sessions([event for event in events if event.get("stage") == stage], rows)
    attempts = [attempt for session in sessions for attempt in session.attempts]
    if not attempts:
        return None
    found = Goodput(
        validation=sum(row.get("validation_s") or 0.0 for row in rows),
        save=sum(row.get("save_stall_s") or 0.0 for row in rows),
    )
    for session in sessions:
        _account(session, found)
    for attempt in attempts:
        found.lost += _lost_s(attempt, rows, last=attempt is attempts[-1])
    _add_steps(found, rows, list(_unkept(events, stage)))
    wall_s = sum(session.ended - session.started for session in sessions)
    found.other = wall_s - found.wall_s
    return found


def _sessions(events: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[_Session]:
    sessions: list[_Session] = []
    for event in events:
        name, time = event["event"], event["time"]
        if name == "stage_started":
            sessions.append(_Session(time, time))
            continue
        if not sessions:
            continue
        session = sessions[-1]
        session.ended = time
        if name == "processes_started":
            session.attempts.append(_Attempt(time, ended=time))
        if session.attempts:
            _follow(session.attempts[-1], name, event)
    for number, session in enumerate(sessions):
        following = sessions[number + 1] if number + 1 < len(sessions) else None
        _extend(session, following, events, rows)
    return [session for session in sessions if session.attempts]


def _follow(attempt: _Attempt, name: str, event: dict[str, Any]) -> None:
    time = attempt.ended = event["time"]
    if name == "training_started":
        attempt.training = time
    elif name == "training_ended":
        attempt.trained = time
    elif name == "process_lost":
        attempt.lost = time


def _extend(session: _Session, following: _Session | None, events: list[dict], rows: list[dict]) -> None:
    """A session without an end goes on, or its launcher was killed: it lasted at least until its last row."""
    if any(event["event"] in ENDS and event["time"] == session.ended for event in events) or not session.attempts:
        return
    until = following.started if following else float("inf")
    last = max((row["time"] for row in rows if session.started <= row["time"] < until), default=session.ended)
    session.ended = session.attempts[-1].ended = max(session.ended, last)


def _account(session: _Session, found: Goodput) -> None:
    before = session.started
    for number, attempt in enumerate(session.attempts):
        if number:
            found.restart += attempt.started - before
        else:
            found.start += attempt.started - before
        found.start += (attempt.ended if attempt.training is None else attempt.training) - attempt.started
        before = attempt.over
    last = session.attempts[-1]
    if last.trained is not None:
        found.finish += session.ended - last.trained


def _lost_s(attempt: _Attempt, rows: list[dict[str, Any]], last: bool) -> float:
    """Time of an attempt that nothing came of: from the checkpoint that is gone on from until its loss was noticed."""
    if attempt.training is None or attempt.trained is not None or (attempt.lost is None and last):
        return 0.0
    times = (row["time"] for row in rows if attempt.training <= row["time"] <= attempt.over)
    return attempt.over - max(times, default=attempt.training)


def _unkept(events: Iterable[dict[str, Any]], stage: str) -> Iterator[tuple[int, int]]:
    """Intervals (after, up to) of steps whose update is not in the weights, though the run went on past them."""
    for event in events:
        if event.get("stage") == stage and event["event"] in ("update_skipped", "update_left_out"):
            yield event["step"] - 1, event["step"]
        if event.get("stage") == stage and event["event"] in ("rolled_back", "weights_taken_back"):
            yield event["to_step"], event["step"]


def _add_steps(found: Goodput, rows: list[dict[str, Any]], unkept: list[tuple[int, int]]) -> None:
    """A row of training speaks for all steps since the one before."""
    before = 0
    for row in (row for row in rows if row.get("step_s") is not None):
        steps = range(before, row["step"])
        lost = sum(any(low <= step < high for low, high in unkept) for step in steps) if unkept else 0
        waiting_s = row["step_s"] * (row.get("data_wait") or 0.0)
        found.lost += lost * row["step_s"]
        found.data_wait += (len(steps) - lost) * waiting_s
        found.useful += (len(steps) - lost) * (row["step_s"] - waiting_s)
        before = row["step"]
