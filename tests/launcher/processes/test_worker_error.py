"""The error files of real workers, and which error counts as the first."""

import json
import os
import subprocess
import sys

import pytest
from paths import HELPERS

from data.errors import DataError
from launcher.errors import ConfigError
from launcher.monitoring.progress import PlainDisplay
from launcher.processes.process_group import Command, Launch
from launcher.processes.stop_request import StopRequest
from launcher.processes.supervisor import Job, supervise
from launcher.processes.worker_error import first_error, record_error
from launcher.run_folder import RunFolder

ROOT = HELPERS.parents[1]


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


def worker(run: RunFolder) -> list[str]:
    return [sys.executable, "-m", "launcher.worker", str(run.path), "teacher"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def record(run, rank, error):
    stage = run.stage("teacher")
    try:
        raise error
    except Exception as raised:
        record_error(stage, rank, raised)


def test_a_users_error_in_a_real_worker_ends_the_run_with_its_one_paragraph(run):
    run.recipe_file.write_text("name: mini\nstagges: []\n")
    stage = run.stage("teacher")
    launch = Launch("local", "127.0.0.1:1", {"localhost": [0]}, [Command("localhost", worker(run), environment())])
    job = Job(stage, lambda: launch, processes=0, succeeded=stage.done_file.is_file, steps=1)
    with pytest.raises(ConfigError) as error:
        supervise(job, run, StopRequest(), PlainDisplay(sys.stderr))
    written = json.loads(stage.error_file(0).read_text())
    assert written["kind"] == "ConfigError"
    assert written["exit_code"] == 2
    assert str(error.value) == written["message"]
    assert str(error.value).startswith(f"The recipe {run.recipe_file}: corpus is missing")
    assert "Traceback" not in str(error.value)


def test_any_other_error_in_a_real_worker_names_our_last_frame_and_the_log(run):
    run.recipe_file.write_text((ROOT / "launcher/recipes/mini.yaml").read_text())
    stage = run.stage("teacher")
    assert subprocess.run(worker(run), env=environment() | {"OMP_NUM_THREADS": "two"}).returncode == 1
    error = first_error(stage)
    assert error
    assert error.rank == 0
    assert error.kind == "ValueError"
    assert error.frame.startswith("launcher/worker.py:")
    assert "Traceback (most recent call last)" in error.traceback
    paragraph = error.describe(stage.rank_log(0))
    assert "ended with ValueError" in paragraph
    assert error.frame in paragraph
    assert f"The traceback is in {stage.rank_log(0)}." in paragraph
    assert "Traceback (most recent call last)" in stage.rank_log(0).read_text()


def test_the_first_error_by_time_counts_unless_it_only_tells_of_a_lost_peer(run):
    record(run, 2, RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:4567"))
    record(run, 1, DataError("Shard 3 is torn."))
    record(run, 0, ValueError("a consequence"))
    error = first_error(run.stage("teacher"))
    assert error
    assert error.rank == 1
    assert error.message == "Shard 3 is torn."


def test_without_an_error_file_there_is_no_first_error(run):
    assert first_error(run.stage("teacher")) is None
