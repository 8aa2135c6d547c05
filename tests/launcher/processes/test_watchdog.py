"""Which process was lost first, from what the agents of several hosts note, each in its own time; and which is silent
because it hangs, and which because it waits for another."""

import os

import pytest

from launcher.processes import watchdog
from launcher.processes.watchdog import Deadlines, Watchdog
from launcher.run_folder import RunFolder, write_json


@pytest.fixture
def stage(tmp_path):
    """A stage with two processes elsewhere; the second stopped writing to its log before the first did."""
    folder = RunFolder(tmp_path).stage("teacher")
    for rank, written in ((0, 200), (1, 100)):
        beat = {"rank": rank, "pid": 1, "host": f"node-{'ab'[rank]}", "step": 7, "section": "train"}
        write_json(folder.heartbeat_file(rank), beat)
        folder.logs.mkdir(exist_ok=True)
        folder.rank_log(rank).touch()
        os.utime(folder.rank_log(rank), (written, written))
    return folder


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("later_s", "first"), [(0.0, 1), (0.2, 1), (2.0, 0)])
def test_of_losses_noted_close_together_the_first_is_the_one_that_wrote_least_lately(stage, clock, later_s, first):
    watch_ = Watchdog(stage, 2, Deadlines())
    stage.loss_file(0).touch()
    if later_s:
        assert watch_.check() is None
        clock[0] += later_s
    stage.loss_file(1).touch()
    assert watch_.check() is None
    clock[0] += watchdog.LINGER_S + 0.1
    failure = watch_.check()
    assert failure
    assert failure.rank == first
    assert f"rank {first} on node-{'ab'[first]} was lost at step 7" in failure.reason


class Ranks:
    """Processes elsewhere, whose heartbeats a test writes, and the watchdog."""

    def __init__(self, folder, clock, num_ranks: int):
        self.clock = clock
        self.watchdog = Watchdog(folder, num_ranks, DEADLINES)
        self._folder = folder
        self._num_beats = 0

    def beat(self, rank: int, step: int, section: str) -> None:
        self._num_beats += 1
        beat = {"rank": rank, "pid": 1, "host": f"node-{rank}", "step": step, "section": section}
        write_json(self._folder.heartbeat_file(rank), {**beat, "time": self._num_beats})

    def check_after(self, seconds: float):
        self.clock[0] += seconds
        return self.watchdog.check()


DEADLINES = Deadlines(startup_s=300, stall_s=120)


@pytest.fixture
def ranks(tmp_path, clock):
    return Ranks(RunFolder(tmp_path).stage("teacher"), clock, 2)


@pytest.mark.parametrize(
    ("ahead", "behind"),
    [
        ((7, "train"), (7, "data")),
        ((7, "train"), (7, "train")),
        ((8, "validate"), (8, "validate")),
        ((8, "save"), (8, "validate")),
        ((8, "train"), (8, "save")),
        ((0, "start"), (0, "units")),
        ((7, "train"), (6, "train")),
        ((9, "train"), (9, "restore")),
    ],
)
def test_a_process_that_waits_in_a_collective_for_a_slow_one_is_not_ended(ranks, ahead, behind):
    ranks.beat(0, *ahead)
    for _ in range(20):
        ranks.beat(1, *behind)
        assert ranks.check_after(100.0) is None


def test_the_one_that_hangs_is_named_when_those_that_wait_for_it_are_silent_too(ranks):
    ranks.beat(0, 8, "train")
    ranks.beat(1, 7, "train")
    assert ranks.check_after(0.0) is None
    failure = ranks.check_after(121.0)
    assert failure
    assert failure.rank == 1


def test_the_one_that_hangs_is_named_as_soon_as_the_slow_one_has_come_as_far(ranks):
    ranks.beat(0, 7, "train")
    for _ in range(3):
        ranks.beat(1, 7, "data")
        assert ranks.check_after(100.0) is None
    # Now it waits for the other, which never left its forward pass.
    ranks.beat(1, 7, "train")
    assert ranks.check_after(0.0) is None
    failure = ranks.check_after(121.0)
    assert failure
    assert failure.rank == 0
    assert "at step 7, in train" in failure.reason


def test_one_that_is_behind_and_silent_is_named_although_those_ahead_report(ranks):
    ranks.beat(1, 7, "data")
    assert ranks.check_after(0.0) is None
    ranks.beat(0, 8, "save")
    assert ranks.check_after(70.0) is None
    ranks.beat(0, 8, "save")
    failure = ranks.check_after(70.0)
    assert failure
    assert failure.rank == 1
