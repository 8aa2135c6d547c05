"""Where the time goes until a stage's first step."""

import os
import time

import pytest

from launcher.processes.start_profile import StartPart, StartProfile, describe_start, read_start_profile
from launcher.processes.worker_command import worker_environment
from launcher.recipe import ClusterConfig
from launcher.training.profiling import StepProfiler


def test_a_part_has_the_wall_time_and_the_cpu_time_since_the_one_before(tmp_path):
    profile = StartProfile()
    profile.mark("before")
    time.sleep(0.05)
    profile.mark("waiting")
    began = time.process_time()
    while time.process_time() < began + 0.05:
        pass
    profile.mark("computing")
    profile.write(tmp_path / "profile" / "start-00.json")

    _, waiting, computing = read_start_profile(tmp_path / "profile" / "start-00.json")
    assert (waiting.name, computing.name) == ("waiting", "computing")
    assert waiting.wall_s >= 0.05 > waiting.cpu_s
    assert computing.cpu_s >= 0.05
    assert computing.wall_s >= computing.cpu_s * 0.9


def test_the_commands_that_started_a_process_are_its_first_part(monkeypatch):
    environment = worker_environment(ClusterConfig(), processes=1, port=1)
    # This test's own launcher is the process that started it.
    monkeypatch.setenv("CHORUS_LAUNCHER_PID", str(os.getppid()))
    monkeypatch.setenv("CHORUS_STAGE_STARTED", environment["CHORUS_STAGE_STARTED"])
    profile = StartProfile()
    profile.begin()
    (commands,) = profile.parts
    assert commands.name == "commands"
    assert 0 <= commands.wall_s < 60
    assert commands.cpu_s == pytest.approx(time.process_time(), abs=5)


def test_without_a_launcher_of_this_machine_a_start_begins_with_the_process(monkeypatch):
    monkeypatch.delenv("CHORUS_STAGE_STARTED", raising=False)
    profile = StartProfile()
    profile.begin()
    assert profile.parts == []


def test_a_start_is_shown_with_its_sum():
    parts = [StartPart("commands", 4.0, 3.0), StartPart("first step", 1.5, 0.25)]
    assert describe_start(parts).splitlines() == [
        "start of the first process  wall s   CPU s",
        "commands                      4.00    3.00",
        "first step                    1.50    0.25",
        "until the first step          5.50    3.25",
    ]


@pytest.mark.parametrize("start", [True, False])
def test_a_start_is_written_after_the_first_step_and_only_where_it_was_asked_for(tmp_path, start):
    profiler = StepProfiler(range(0), tmp_path / "profile", rank=3, start=start)
    for step in range(3):
        profiler.before_step(step)
        profiler.after_step(step + 1)
    parts = read_start_profile(tmp_path / "profile" / "start-03.json")
    names = [part.name for part in parts if part.name.startswith("first")]
    assert names == ["first batch", "first step"] * start
