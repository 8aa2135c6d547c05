"""Encoder options that draw numbers or keep statistics, on real processes: a run is the same on any number of them."""

import time

import processes
import pytest
import torch
from conftest import write_recipe
from safetensors.torch import load_file
from small_runs import STAGE

from data.sampling.token_counts import token_counts
from data.shards.writer import read_index
from data.text.tokenizer import Tokenizer
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder
from launcher.stages.context import StageContext
from launcher.tracking import read_metrics
from launcher.training.inputs import open_inputs
from model.layers.subsampling import ConvolutionSubsampling, SubsamplingConfig

ENCODER = {
    "convolution_norm": "batch",
    "stochastic_depth": 0.4,
    "positions": "relative",
    "causal_convolution": "true",
    "chunks.max_frames": 5,
    "chunks.left": "drawn",
    "subsampling.factor": 8,
    "activation_checkpointing": "true",
}
STEPS = {"steps": 10, "log_every": 2, "log_layers": "true", "validate_every": 10}
CHANGES = (
    *(f"stages.{STAGE}.model.encoder.{key}={value}" for key, value in ENCODER.items()),
    *(f"stages.{STAGE}.{key}={value}" for key, value in STEPS.items()),
)
ONE_PROCESS = (*CHANGES, "cluster.processes=1", "cluster.expert_parallel=1")
STATISTICS = [
    f"encoder.layers.{layer}.convolution_inner_norm.running_{kind}" for layer in (0, 1) for kind in ("mean", "var")
]


def start(run: RunFolder, world: int) -> list:
    return processes.start(["-m", "launcher.worker", str(run.path), STAGE], world, run.path / "log")


def finish(run: RunFolder, started: list) -> None:
    codes = [process.wait(120) for process in started]
    assert codes == [0] * len(codes), (run.path / "log").read_text()[-6000:]


def outcome(run: RunFolder) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of a run, and its model."""
    rows = read_metrics(run.stage(STAGE).metrics_file)
    losses = [row[name] for row in rows for name in ("loss", "validation/loss") if name in row]
    return losses, load_file(run.stage(STAGE).model / "model.safetensors")


def left_out(run: RunFolder, factor: int) -> int:
    """How many utterances of the training split are too short for their transcripts at a factor."""
    recipe = load_recipe(run.recipe_file)
    index = read_index(recipe.split_folder(run, "train"))
    _, min_frames = token_counts(index, Tokenizer.load(run.tokenizer), run.token_counts_file("train"))
    fastest = index.samples / max(recipe.augment.speeds)
    return int((-(-recipe.features.num_frames(fastest.astype(int)) // factor) < min_frames).sum())


@pytest.fixture(scope="module")
def alone(make_run) -> RunFolder:
    """Trained by one process."""
    run = make_run("alone", ONE_PROCESS)
    finish(run, start(run, 1))
    return run


@pytest.mark.parametrize("deepspeed", ["zero2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_running_statistics_are_of_all_lanes_on_any_processes_and_survive_a_move(alone, make_run, deepspeed):
    moved = make_run(f"moved-{deepspeed}", (*CHANGES, f"cluster.deepspeed={deepspeed}"))
    started, until = start(moved, 2), time.monotonic() + 90
    while not any(row["step"] >= 2 for row in read_metrics(moved.stage(STAGE).metrics_file)):
        assert time.monotonic() < until, (moved.path / "log").read_text()[-6000:]
        time.sleep(0.01)
    moved.stage(STAGE).stop_file.touch()
    finish(moved, started)
    moved.stage(STAGE).stop_file.unlink()
    write_recipe(moved, ONE_PROCESS)
    finish(moved, start(moved, 1))
    (losses, model), (expected_losses, expected) = outcome(moved), outcome(alone)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    for name in STATISTICS:
        torch.testing.assert_close(model[name], expected[name], rtol=1e-3, atol=1e-4)
        assert not torch.allclose(model[name], torch.full_like(model[name], float("var" in name)), atol=0.05)


def test_what_layers_do_is_told_alike_on_any_processes(alone, make_run):
    two = make_run("two-processes", CHANGES)
    finish(two, start(two, 2))
    rows = [[row for row in read_metrics(run.stage(STAGE).metrics_file) if "loss" in row] for run in (alone, two)]
    assert len(rows[0]) == STEPS["steps"] / STEPS["log_every"]
    for expected, row in zip(*rows, strict=True):
        names = [name for name in expected if name.startswith("layers/")]
        assert len(names) == 5  # two layers' cosine and gradient, and the rank
        assert {name: row[name] for name in names} == pytest.approx({name: expected[name] for name in names}, rel=1e-3)


def test_batch_norms_moments_are_no_metrics(alone):
    names = {name for row in read_metrics(alone.stage(STAGE).metrics_file) for name in row}
    assert "experts/layer-00/load" in names
    assert not any(name.startswith("norms/") for name in names)


def test_the_plan_counts_the_frames_that_the_stages_encoder_makes(alone):
    [sampler] = [event for event in alone.events() if event["event"] == "plan_opened" and event["split"] == "train"]
    assert sampler["excluded"]["infeasible for CTC"] == left_out(alone, 8) > left_out(alone, 4)


@pytest.mark.parametrize("factor", [4, 6, 8])
def test_a_steps_frames_are_those_of_its_micro_batches(make_run, factor):
    run = make_run(f"factor-{factor}")
    recipe = load_recipe(run.recipe_file)
    lanes = tuple(range(recipe.batches.lanes))
    stage = recipe.training_stage(STAGE)
    subsampling = SubsamplingConfig(channels=1, factor=factor)
    encoder = stage.model.encoder.model_copy(update={"subsampling": subsampling})
    stage = stage.model_copy(update={"model": stage.model.model_copy(update={"encoder": encoder})})
    inputs = open_inputs(StageContext(recipe, run, stage), "train", lanes, torch.device("cpu"))
    front = ConvolutionSubsampling(subsampling, recipe.features.mel_bins, 4)
    [batches] = inputs.steps(0, 1)
    micro_batches = [inputs.micro_batch(batch) for batch in batches]
    made = sum(int(front(batch.features_BTF, batch.lengths_B)[1].sum()) for batch in micro_batches)
    assert made == inputs.sampler.totals(0).frames
