"""The runs of a sweep under a scheduler: `chorus run` is a program of a few lines that leaves what a run leaves."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from small_servers import wait_for

from launcher.errors import Preempted
from launcher.monitoring.progress import Display
from launcher.processes.stop_request import StopRequest
from launcher.sweep import scheduler as scheduler_module
from launcher.sweep.scheduler import Limits, Scheduler
from launcher.sweep.trials import SweepFolder, Trial

# Holds its run folder; writes validations; ends as its last argument says, or when it is asked to.
FAKE_RUN = """
import fcntl, json, os, signal, sys, time
folder, kind, value = sys.argv[1], sys.argv[2], float(sys.argv[3])
os.makedirs(folder + "/student", exist_ok=True)
lock = open(folder + "/run.lock", "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.truncate(0); lock.write(str(os.getpid())); lock.flush()
with open(folder + "/starts", "a") as starts:
    starts.write(json.dumps({"cores": len(os.sched_getaffinity(0)), "group": os.environ["WANDB_RUN_GROUP"],
                             "others": len(os.listdir(os.path.dirname(folder)))}) + "\\n")
def leave(number, frame):
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
print("working on", kind, flush=True)
with open(folder + "/student/metrics.jsonl", "w") as metrics:
    for step in (10, 20, 30):
        metrics.write(json.dumps({"step": step, "validation/cer": value, "time": 1.0}) + "\\n")
if kind == "fails" and not os.path.exists(folder + "/mended"):
    sys.exit(3)
if kind == "waits":
    while not os.path.exists(folder + "/go"):
        time.sleep(0.01)
"""


class Told(Display):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    def end(self):
        pass

    def _show(self):
        pass


RECIPE = SimpleNamespace(
    cluster=SimpleNamespace(processes=1),
    training_stage=lambda name: SimpleNamespace(steps=100, unseeded_name="student"),
)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A scheduler over runs of these kinds; what it saved last is in `saved`."""
    monkeypatch.setattr(scheduler_module, "POLL_S", 0.01)
    monkeypatch.setattr(scheduler_module, "JUDGE_S", 0.01)
    script = tmp_path / "fake_run.py"
    script.write_text(FAKE_RUN)
    folder = SweepFolder(tmp_path / "sweep")
    folder.path.mkdir()

    def build(kinds, values=None, trials=None, **limits):
        if trials is None:
            trials = [Trial(f"run-{number}", f"run-{number}", {}, None, []) for number in range(len(kinds))]
        values = values or [0.5] * len(kinds)

        def command(trial):
            number = int(trial.name.removeprefix("run-"))
            arguments = [str(folder.trial(trial).path), kinds[number], str(values[number])]
            return [sys.executable, "-S", str(script), *arguments]

        return Scheduler(
            folder=folder,
            trials=trials,
            recipes={trial.name: RECIPE for trial in trials},
            judged={trial.name: ["student"] for trial in trials},
            limits=Limits(**limits),
            make_command=command,
            prepare=lambda trial: folder.trial(trial).path.mkdir(parents=True, exist_ok=True),
            save=lambda: saved.update({trial.name: trial.state for trial in trials}),
            stop=StopRequest(),
            display=Told(),
        )

    saved: dict[str, str] = {}
    build.saved = saved
    build.folder = folder
    return build


def states(scheduler):
    return [trial.state for trial in scheduler.trials]


def starts(folder, name):
    path = folder.path / "trials" / name / "starts"
    return [json.loads(line) for line in path.read_text().splitlines()]


def release(folder, name):
    path = folder.path / "trials" / name
    path.mkdir(parents=True, exist_ok=True)
    (path / "go").touch()


def test_all_runs_are_brought_to_their_ends_and_a_failed_one_does_not_stop_the_others(make):
    scheduler = make(["works", "fails", "works"])
    scheduler.run()
    assert states(scheduler) == ["done", "failed", "done"]
    failed = scheduler.trials[1]
    assert (failed.exit_code, failed.reason) == (3, "chorus run ended with 3")
    assert any("exit code 3" in line and "working on fails" in line for line in scheduler.display.lines)
    assert make.saved == {"run-0": "done", "run-1": "failed", "run-2": "done"}
    # As many as are asked for at a time: one.
    assert [starts(make.folder, f"run-{number}")[0]["others"] for number in range(3)] == [1, 2, 3]
    assert {starts(make.folder, "run-0")[0]["group"]} == {"sweep"}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity")
def test_runs_at_the_same_time_share_the_cores(make):
    cores = len(os.sched_getaffinity(0))
    scheduler = make(["works", "works"], parallel=2)
    scheduler.run()
    assert states(scheduler) == ["done", "done"]
    counts = [starts(make.folder, f"run-{number}")[0]["cores"] for number in range(2)]
    assert sum(counts) == max(cores, 2)
    assert len(os.sched_getaffinity(0)) == cores


def test_a_stop_lets_the_runs_save_and_the_next_start_goes_on_with_them(make):
    scheduler = make(["waits", "works"])
    prepare = scheduler.prepare

    def stop_soon(trial):
        prepare(trial)
        scheduler.stop.count = 1

    scheduler.prepare = stop_soon
    with pytest.raises(Preempted):
        scheduler.run()
    assert states(scheduler) == ["interrupted", "waiting"]
    assert make.saved["run-0"] == "interrupted"
    release(make.folder, "run-0")
    again = make(["waits", "works"], trials=scheduler.trials)
    again.run()
    assert states(again) == ["done", "done"]
    assert len(starts(make.folder, "run-1")) == 1


def test_a_run_that_survived_a_killed_sweep_is_waited_for_and_not_started_beside_itself(make):
    scheduler = make(["waits"])
    scheduler.prepare(scheduler.trials[0])
    environment = {**os.environ, "WANDB_RUN_GROUP": "x"}
    survivor = subprocess.Popen(scheduler.make_command(scheduler.trials[0]), env=environment)
    run = make.folder.trial(scheduler.trials[0])
    wait_for(lambda: run.holder() == survivor.pid, 20)
    scheduler.trials[0].state = "running"
    original = scheduler._count_time
    looks = []

    def count():
        looks.append(scheduler.trials[0].state)
        if len(looks) == 5:
            release(make.folder, "run-0")
            survivor.wait(20)
        original()

    scheduler._count_time = count
    scheduler.run()
    assert looks[:5] == ["running"] * 5
    # Started once more, after it, to learn how it ended.
    assert len(starts(make.folder, "run-0")) == 2
    assert states(scheduler) == ["done"]


def test_a_budget_stops_what_runs_and_a_larger_one_goes_on(make):
    scheduler = make(["waits", "works"], budget_s=0.3)
    scheduler.run()
    assert states(scheduler) == ["interrupted", "waiting"]
    assert scheduler.trials[0].reason == "the budget is used up"
    assert 0.3 <= scheduler.trials[0].seconds < 20
    release(make.folder, "run-0")
    again = make(["waits", "works"], trials=scheduler.trials, budget_s=1000.0)
    again.run()
    assert states(again) == ["done", "done"]


def test_a_hopeless_run_is_stopped_early_and_never_started_again(make):
    scheduler = make(["works", "works", "works", "waits"], values=[0.1, 0.2, 0.3, 0.9], stop_after=0.2)
    scheduler.run()
    assert states(scheduler) == ["done", "done", "done", "stopped_early"]
    assert "worse than the others' median of 0.2" in scheduler.trials[3].reason
    again = make(["works", "works", "works", "works"], trials=scheduler.trials)
    again.run()
    assert states(again)[3] == "stopped_early"
    assert len(starts(make.folder, "run-3")) == 1


def test_a_run_that_another_start_holds_is_left_alone_by_a_stop(make):
    scheduler = make(["works"])
    run = make.folder.trial(scheduler.trials[0])
    run.path.mkdir(parents=True)
    scheduler.trials[0].state = "running"
    scheduler.stop.count = 1
    with run.lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Preempted):
            scheduler.run()
    assert states(scheduler) == ["interrupted"]


def test_a_sweep_that_is_killed_leaves_its_runs_alive(make):
    scheduler = make(["waits"])
    run = make.folder.trial(scheduler.trials[0])
    process = os.fork()
    if process == 0:
        # A session of its own, to be killed as a terminal's programs are: all of it.
        os.setsid()
        try:
            scheduler.run()
        finally:
            os._exit(0)
    try:
        wait_for(run.holder, 30)
        holder = run.holder()
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        time.sleep(0.1)
        assert run.holder() == holder
    finally:
        release(make.folder, "run-0")
    wait_for(lambda: run.holder() is None, 30)
