"""`chorus run` from shards to report, killed on the way: teacher, distilled student with spread experts, evaluation."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from small_runs import kill_everything, recipe_values
from wandb_records import artifacts, stage_records

from launcher.monitoring.status import run_status
from launcher.run_folder import RunFolder, read_json
from launcher.tracking import read_metrics
from launcher.tracking.sync import unsent_records


@pytest.fixture(scope="module")
def recipe_file(shards, tmp_path_factory) -> Path:
    values = recipe_values(shards)
    teacher = values["stages"][0] | {"name": "teacher"}
    teacher["model"] = copy.deepcopy(teacher["model"])
    for key in ("groups", "experts"):
        del teacher["model"]["encoder"][key]
    student = values["stages"][0] | {"kind": "distill", "teacher": "teacher", "initialize_from_teacher": True}
    evaluation = {"name": "evaluation", "kind": "evaluate", "models": ["teacher", "student"], "split": "dev"}
    path = tmp_path_factory.mktemp("recipe") / "whole.yaml"
    path.write_text(yaml.safe_dump(values | {"name": "whole", "stages": [teacher, student, evaluation]}))
    return path


# What other launchers and schedulers may have left in the environment of a shell, and a home that cannot be written: a
# run is none of theirs.
SURROUNDINGS = {
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "PMIX_RANK": "0",
    "MPI_LOCALRANKID": "0",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "RANK": "7",
    "LOCAL_RANK": "seven",
    "WORLD_SIZE": "9",
    "MASTER_ADDR": "203.0.113.1",
    "SLURM_JOB_ID": "1",
    "SLURM_PROCID": "3",
    "WANDB_RUN_ID": "another",
    "NCCL_DEBUG": "INFO",
    "CUDA_VISIBLE_DEVICES": "-1",
    "HOME": "/dev/null/home",
}


def start(recipe_file: Path, run: RunFolder) -> subprocess.Popen:
    command = [sys.executable, "-m", "launcher.cli", "run", str(recipe_file), "--run-dir", str(run.path)]
    environment = {**os.environ, **SURROUNDINGS, "DS_ACCELERATOR": "cpu", "WANDB_MODE": "offline"}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_step(launcher: subprocess.Popen, run: RunFolder, stage: str, step: int) -> None:
    until = time.monotonic() + 200
    while not any(row["step"] >= step for row in read_metrics(run.stage(stage).metrics_file)):
        assert launcher.poll() is None, launcher.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


def check_tracking(run: RunFolder) -> None:
    """What W&B would receive: lineage from shards to evaluation, the restart, the goodput and the examples."""
    shards, tokenizer = ("whole-shards-train", "shards", True), ("whole-tokenizer", "tokenizer", True)
    teacher, student = "whole-teacher-model", "whole-student-model"
    assert list(unsent_records(run)) == ["teacher", "student", "evaluation"]
    declared = {  # every attempt declares its inputs, if it lives to do so
        "teacher": [shards, tokenizer, (teacher, "model", False)],
        "student": [shards, (teacher, "model", True), tokenizer, (student, "model", False)],
        "evaluation": [
            ("whole-shards-dev", "shards", True),
            (student, "model", True),
            (teacher, "model", True),
            ("whole-evaluation", "evaluation", False),
        ],
    }
    for stage, expected in declared.items():
        assert sorted(set(artifacts(run.stage(stage).path))) == sorted(expected)
    every = [record for name in ("teacher", "student", "evaluation") for record in stage_records(run.stage(name).path)]
    digests = {(record.artifact.name, record.artifact.digest) for record in every if record.HasField("artifact")}
    assert len({name for name, _ in digests}) == len(digests), "an artifact of one name has two contents"
    assert [record.alert.title for record in every if record.HasField("alert")] == ["teacher was restarted"]

    last = list(read_metrics(run.stage("teacher").metrics_file))[-1]
    assert sum(value for name, value in last.items() if name.startswith("goodput/") and name != "goodput/wall_s") == (
        pytest.approx(1.0)
    )
    tables = run.stage("evaluation").path.glob("wandb/*/files/media/table/examples/*.json")
    table = json.loads(next(file for file in tables if file.name.startswith("student")).read_text())
    examples = read_json(run.stage("evaluation").evaluation_file)["models"]["student"]["examples"]
    assert [row[0] for row in table["data"]] == [example["key"] for example in examples]
    staged = (run.stage("evaluation").wandb / "artifacts" / "staging").iterdir()
    assert sum(file.read_bytes().startswith(b"fLaC") for file in staged) >= len(examples)


def model_files(run: RunFolder) -> dict[Path, int]:
    """When each file of models and checkpoints was written; W&B may still be tidying its own folders."""
    files = [*run.path.glob("*/model/*.safetensors"), *run.path.glob("*/checkpoints/*/*.safetensors")]
    assert files
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.alone
def test_a_run_that_is_killed_goes_on_and_ends_and_is_then_done(recipe_file, tmp_path):
    run = RunFolder(tmp_path / "my runs" / "the run")
    launcher = start(recipe_file, run)
    wait_for_step(launcher, run, "teacher", 6)
    os.kill(run.stage("teacher").read_heartbeats()[1]["pid"], signal.SIGKILL)
    wait_for_step(launcher, run, "student", 6)
    assert [event["rank"] for event in run.events() if event["event"] == "process_lost"] == [1]
    kill_everything(launcher)
    teacher = (run.stage("teacher").model / "model.safetensors").stat()

    launcher = start(recipe_file, run)
    output, _ = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, output
    assert "teacher: done already" in output
    assert (run.stage("teacher").model / "model.safetensors").stat() == teacher
    steps = [row["step"] for row in read_metrics(run.stage("student").metrics_file) if "loss" in row]
    assert steps == [3, 6, 9, 12, 15, 16]
    assert any(name.startswith("distill/") for row in read_metrics(run.stage("student").metrics_file) for name in row)
    models = read_json(run.results_file)["models"]
    assert models["student"]["encoder_parameters"] < models["teacher"]["encoder_parameters"]
    assert {"cer", "wer", "utterances", "rtf"} <= models["student"]["dev"].keys()
    assert "<svg" in run.report_file.read_text()
    one_run = {json.loads(file.read_text())["id"] for file in run.path.glob("*/wandb.json")}
    assert len(one_run) == 3  # one W&B run per stage, the resumed ones included
    check_tracking(run)

    for stage in run_status(run)["stages"]:
        if "goodput" in stage:
            assert stage["goodput"]["lost"] > 0 or stage["name"] == "student"
            assert abs(stage["goodput"]["other"]) < 0.02, stage["goodput"]

    before = model_files(run)
    again = start(recipe_file, run)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0
    assert "nothing was started" in output
    assert model_files(run) == before
