"""Whole runs on a card: each ZeRO stage, NCCL over all cards there are, a kill and a resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from launcher.processes.watchdog import processes_of
from launcher.run_folder import RunFolder, read_json
from launcher.tracking import read_metrics

STEPS = 40
CHECKPOINT_EVERY = 10

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(280),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA card, which these tests need."),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Shards and tokenizer of the embedded corpus, for all runs."""
    folder = tmp_path_factory.mktemp("prepared") / "run"
    command = command_of(folder, "zero2", 1, "stages.teacher.steps=1", "stages.student.steps=1")
    subprocess.run(command, env=environment(), check=True, capture_output=True)
    return folder / "corpus"


def environment() -> dict[str, str]:
    return {**os.environ, "DS_ACCELERATOR": "cuda", "WANDB_MODE": "disabled"}


def command_of(folder: Path, deepspeed: str, processes: int, *settings: str) -> list[str]:
    options = [
        f"cluster.processes={processes}",
        f"cluster.expert_parallel={processes}",
        f"cluster.deepspeed={deepspeed}",
        "cluster.precision=bf16",
        f"stages.teacher.checkpoint.every_steps={CHECKPOINT_EVERY}",
        "stages.teacher.log_every=1",
        *settings,
    ]
    command = [sys.executable, "-m", "launcher.cli", "run", "mini", "--run-dir", str(folder)]
    for option in options:
        command += ["--set", option]
    return command


def corpus_of(folder: Path) -> str:
    return f"corpus={json.dumps({'name': 'shards', 'shards': str(folder)})}"


def steps(run: RunFolder, stage: str) -> list[int]:
    return [row["step"] for row in read_metrics(run.stage(stage).metrics_file) if "loss" in row]


def losses(run: RunFolder, stage: str) -> list[float]:
    return [row["loss"] for row in read_metrics(run.stage(stage).metrics_file) if "loss" in row]


@pytest.mark.parametrize("deepspeed", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("processes", [1, 2])
def test_teacher_and_student_learn_on_cards(tmp_path, prepared, deepspeed, processes):
    if torch.cuda.device_count() < processes:
        pytest.skip("There is one card: two processes have no second one.")
    run = RunFolder(tmp_path / "run")
    lengths = [f"stages.{name}.steps={STEPS}" for name in ("teacher", "student")]
    subprocess.run(
        command_of(run.path, deepspeed, processes, corpus_of(prepared), *lengths),
        env=environment(),
        check=True,
        timeout=250,
    )
    for stage in ("teacher", "student"):
        values = losses(run, stage)
        assert values[-1] < values[0]
        assert read_json(run.stage(stage).done_file)["status"] == "done"
    assert read_json(run.results_file)["models"]["student"]["test"]["cer"] <= 1.5


def test_a_killed_training_on_a_card_goes_on_from_its_checkpoint(tmp_path, prepared):
    run = RunFolder(tmp_path / "run")
    command = command_of(
        run.path,
        "zero2",
        1,
        corpus_of(prepared),
        f"stages.teacher.steps={STEPS}",
        "stages.student.steps=1",
    )
    launcher = subprocess.Popen(command, env=environment())
    until = time.monotonic() + 200
    while max(run.stage("teacher").checkpoint_steps(), default=0) < CHECKPOINT_EVERY:
        assert launcher.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    for process in processes_of(run):
        process.kill()

    subprocess.run(command, env=environment(), check=True, timeout=200)
    # Each step once: what came after the checkpoint was done again.
    assert steps(run, "teacher") == list(range(1, STEPS + 1))
    assert read_json(run.stage("teacher").done_file) == {"status": "done", "step": STEPS}


@pytest.mark.skipif("CHORUS_FSDD" not in os.environ, reason="CHORUS_FSDD names no clone of the spoken digits.")
@pytest.mark.timeout(420)
def test_digits_are_learnt_on_a_card(tmp_path):
    run = RunFolder(tmp_path / "run")
    command = [sys.executable, "-m", "launcher.cli", "run", "digits", "--run-dir", str(run.path)]
    command += ["--set", f"corpus.root={os.environ['CHORUS_FSDD']}", "--set", "cluster.processes=1"]
    subprocess.run(command, env=environment(), check=True)
    models = read_json(run.results_file)["models"]
    # On processors they come to 2 to 4 %.
    assert models["student"]["test"]["cer"] < 0.06
