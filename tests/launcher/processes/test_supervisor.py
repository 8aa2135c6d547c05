"""Supervision of real processes: `fake_worker.py` dies, hangs or stops as it is told."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from paths import HELPERS

from data.errors import DataError
from launcher.errors import DistributedError, Preempted
from launcher.monitoring.progress import PlainDisplay
from launcher.processes import supervisor, watchdog
from launcher.processes.process_group import Command, Launch
from launcher.processes.run_processes import token_environment
from launcher.processes.stop_request import StopRequest
from launcher.processes.supervisor import Job, supervise
from launcher.processes.watchdog import Deadlines, processes_of
from launcher.run_folder import RunFolder, read_json

FAKE_WORKER = HELPERS / "fake_worker.py"
ROOT = FAKE_WORKER.parents[2]


# By which processes of a run are known, as in the command of DeepSpeed.
MODULE = ("--module", "launcher.worker")


def fake_command(behaviour: str, run: RunFolder) -> list[str]:
    return [sys.executable, str(FAKE_WORKER), behaviour, *MODULE, str(run.path), "teacher"]


class Lines:
    """A stream that keeps what is written to it."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path)
    yield folder
    for process in processes_of(folder):
        process.kill()


def launch_of(run: RunFolder, command: list[str]) -> Launch:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **token_environment(run)}
    return Launch("local", "127.0.0.1:1", {"localhost": [0, 1]}, [Command("localhost", command, environment)])


class Supervision:
    def __init__(self, run: RunFolder):
        self.run, self.stop, self.lines = run, StopRequest(), Lines()

    def __call__(self, *arguments, **behaviour):
        job = self.job(*arguments, **behaviour)
        with self.stop.installed():
            supervise(job, self.run, self.stop, PlainDisplay(self.lines, seconds_between_lines=0))

    def job(self, attempts=(), restarts=3, ranks=2, steps=6, deadlines=None, **behaviour) -> Job:
        stage = self.run.stage("teacher")
        behaviour |= {"ranks": ranks, "steps": steps, "attempts": list(attempts)}
        command = fake_command(json.dumps(behaviour), self.run)
        return Job(
            stage,
            lambda: launch_of(self.run, command),
            processes=ranks,
            succeeded=lambda: (read_json(stage.done_file) or {}).get("status") == "done",
            steps=steps,
            restarts=restarts,
            deadlines=deadlines or Deadlines(startup_s=20, stall_s=1, stop_s=5, terminate_s=0.5),
        )

    def events(self):
        events = [event for event in self.run.events() if event["event"] != "processes_started"]
        return [(event["event"], event.get("rank")) for event in events]


@pytest.fixture
def supervision(run, monkeypatch):
    monkeypatch.setattr(supervisor, "POLL_S", 0.05)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(watchdog, "LINGER_S", 1.0)
    return Supervision(run)


def test_a_stage_that_works_runs_once_and_shows_its_progress(supervision):
    supervision()
    assert supervision.events() == []
    assert "teacher: step 6/6, loss 1.667, 20.0 s of audio per s" in supervision.lines.text


def test_a_killed_process_is_named_and_the_stage_goes_on_from_its_checkpoint(supervision):
    supervision([{"at": 3, "do": "die", "rank": 1}])
    assert supervision.events() == [("process_lost", 1), ("restart", None)]
    restart = next(event for event in supervision.run.events() if event["event"] == "restart")
    assert restart["restart"] == 1
    assert 2 <= restart["from_step"] <= 4
    assert re.search(r"rank 1 on \S+ was lost at step 3, in train", supervision.lines.text)
    assert f"restart 1 of 3 from step {restart['from_step']}" in supervision.lines.text


def test_a_stage_that_keeps_failing_ends_with_the_log_of_the_rank_that_failed_first(supervision):
    failing = {"at": 1, "do": "exit", "rank": 1, "code": 1, "message": "out of memory"}
    with pytest.raises(DistributedError, match="2 restarts") as error:
        supervision([{**failing, "at": step} for step in (1, 2, 3)], restarts=2)
    assert "rank-01.log" in str(error.value)
    assert "rank 1: out of memory" in str(error.value)
    assert [name for name, _ in supervision.events()] == ["process_lost", "restart"] * 2 + ["process_lost"]


def test_a_loss_that_nobody_else_notices_ends_the_attempt_with_the_stacks_of_the_others(supervision):
    supervision([{"at": 3, "do": "die", "rank": 1, "deaf": True}], deadlines=Deadlines(20, stall_s=60))
    assert supervision.events() == [("process_lost", 1), ("restart", None)]
    assert "wait_for_peers" in supervision.run.stage("teacher").rank_log(0).with_suffix(".stacks").read_text()


def test_restarts_without_a_new_checkpoint_pause_longer_each_time(supervision, monkeypatch):
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_S", 60.0)
    stop = StopRequest()
    restarts = supervisor._Restarts(supervision.job(), stop)
    pauses = []
    for newest in (0, 0, 0, 4):
        started = time.monotonic()
        stop.count = int(newest == 0 and len(pauses) > 1)  # the long one is cut short by a stop
        restarts.wait(newest)
        pauses.append(time.monotonic() - started)
    assert pauses[0] < 0.2
    assert pauses[1] > 0.9
    assert pauses[2] < 0.5
    assert pauses[3] < 0.2


def test_restarts_of_more_than_an_hour_ago_are_forgiven(supervision, monkeypatch):
    monkeypatch.setattr(supervisor, "BUDGET_S", 0.3)
    restarts = supervisor._Restarts(supervision.job(restarts=1), StopRequest())
    restarts.wait(0)
    assert not restarts.left()
    time.sleep(0.4)
    assert restarts.left()


def test_an_error_that_a_restart_cannot_mend_is_not_tried_again(supervision):
    with pytest.raises(DataError, match=r"shard-000003\.tar is torn"):
        supervision([{"at": 2, "do": "exit", "rank": 0, "code": 3, "message": "shard-000003.tar is torn"}])
    assert supervision.events() == [("process_lost", 0)]


def test_a_users_error_arrives_as_the_paragraph_that_the_worker_wrote(supervision):
    message = "Shard train/shard-000003.tar is torn after 12 of 40 utterances. Make it again with `chorus prepare`."
    with pytest.raises(DataError) as error:
        supervision([{"at": 2, "do": "raise", "rank": 1, "error": "DataError", "message": message}])
    assert str(error.value) == message
    assert supervision.events() == [("process_lost", 1)]


def test_of_several_errors_the_cause_is_shown_and_not_the_loss_of_a_peer(supervision):
    failing = {"at": 1, "do": "raise", "rank": 1, "error": "RuntimeError", "message": "out of memory"}
    with pytest.raises(DistributedError) as error:
        supervision([failing], restarts=0)
    assert "Rank 1 on" in str(error.value)
    assert "ended with RuntimeError: out of memory." in str(error.value)
    assert f"The traceback is in {supervision.run.stage('teacher').rank_log(1)}." in str(error.value)
    assert "closed by peer" not in str(error.value)


def test_peers_of_a_killed_process_do_not_hide_its_log(supervision):
    with pytest.raises(DistributedError, match=r"rank 1 on .* was lost") as error:
        supervision([{"at": 1, "do": "die", "rank": 1, "record_peers": True}], restarts=0)
    assert supervision.run.stage("teacher").error_file(0).exists()
    assert "rank-01.log" in str(error.value)
    assert "closed by peer" not in str(error.value)


def test_the_errors_of_an_earlier_attempt_are_gone_when_the_next_one_starts(supervision):
    failing = {"at": 1, "do": "raise", "rank": 1, "error": "RuntimeError", "message": "out of memory"}
    killed = {"at": 3, "do": "die", "rank": 0}
    with pytest.raises(DistributedError, match=r"rank 0 on .* was lost") as error:
        supervision([failing, killed], restarts=1)
    assert "out of memory" not in str(error.value)
    assert supervision.run.stage("teacher").error_files() == []


def test_a_hung_process_is_named_with_its_step_and_section_and_the_stage_is_restarted(supervision):
    supervision([{"at": 2, "do": "hang", "rank": 1}])
    lost = next(event for event in supervision.run.events() if event["event"] == "process_lost")
    assert lost["rank"] == 1
    assert re.search(r"rank 1 on \S+ was silent for", lost["reason"])
    assert "at step 2, in train" in lost["reason"]
    assert processes_of(supervision.run) == []


def test_a_frozen_process_is_told_from_those_that_wait_for_it(supervision):
    def freeze():
        for _ in range(100):
            beats = supervision.run.stage("teacher").read_heartbeats()
            if len(beats) == 2 and beats[1]["step"] >= 2:
                os.kill(beats[1]["pid"], signal.SIGSTOP)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=freeze)
    thread.start()
    supervision(steps=20)
    thread.join()
    assert supervision.events()[0] == ("process_lost", 1)


def test_a_process_that_never_reports_is_named(supervision):
    late = Deadlines(startup_s=1, stall_s=5, stop_s=5, terminate_s=1)
    command = [sys.executable, "-c", "import time; time.sleep(60)", *MODULE, str(supervision.run.path), "teacher"]
    stage = supervision.run.stage("teacher")
    job = Job(stage, lambda: launch_of(supervision.run, command), 2, lambda: False, 6, restarts=0, deadlines=late)
    with pytest.raises(DistributedError, match="rank 0, 1 did not report within 1 s"):
        supervise(job, supervision.run, supervision.stop, PlainDisplay(supervision.lines))
    assert processes_of(supervision.run) == []


def test_exit_code_0_without_the_stages_record_is_a_failure_and_orphans_are_ended(supervision):
    with pytest.raises(DistributedError, match="exit code 0 before the stage was recorded as done"):
        supervision(orphans=True, steps=1000, restarts=0)
    assert processes_of(supervision.run) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_the_processes_save_and_leave(supervision, number):
    def send_after_a_checkpoint():
        while not supervision.run.stage("teacher").checkpoint_steps():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=send_after_a_checkpoint, daemon=True).start()
    with pytest.raises(Preempted, match="newest checkpoint is of step"):
        supervision(steps=1000)
    done = read_json(supervision.run.stage("teacher").done_file)
    assert done["status"] == "stopped"
    assert done["step"] == max(supervision.run.stage("teacher").checkpoint_steps())


def test_processes_that_do_not_leave_when_stopped_are_killed_at_the_deadline(supervision):
    threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGTERM)).start()
    started = time.monotonic()
    with pytest.raises(Preempted):
        supervision(steps=1000, stubborn=True, deadlines=Deadlines(20, 5, stop_s=0.5))
    assert time.monotonic() - started < 8
    assert processes_of(supervision.run) == []


def test_what_a_killed_launcher_left_running_is_ended_before_the_stage_starts(supervision):
    behaviour = json.dumps({"ranks": 1, "steps": 1000, "attempts": [], "stubborn": True})
    command = fake_command(behaviour, supervision.run)
    supervision.run.stage("teacher").logs.mkdir(parents=True)
    subprocess.Popen(command, env={**os.environ, "RANK": "0", "PLAN": "{}", "PYTHONPATH": str(ROOT)})
    while not supervision.run.stage("teacher").read_heartbeats():
        time.sleep(0.05)
    supervision()
    assert processes_of(supervision.run) == []
    assert "ended 1 processes that an earlier launcher had left behind" in supervision.lines.text
