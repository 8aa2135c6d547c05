"""Which process was lost first, from what the agents of several hosts note, each in its own time."""

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
