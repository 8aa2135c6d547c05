"""The trial before the first step: it changes no bit of the training, and names what does not fit with what would."""

import itertools
import json
import re

import numpy as np
import processes
import pytest
from paths import HELPERS
from safetensors.torch import load_file
from small_runs import STAGE

from data.sampling.sampler import BatchesConfig, BatchSampler
from launcher.run_folder import RunFolder, read_json
from launcher.tracking import read_metrics
from launcher.training.memory.shortage import cost
from launcher.training.memory.trial import BUCKET_FACTOR, worst_micro_batches

SCRIPT = str(HELPERS / "scarce.py")
SHORT = (
    f"stages.{STAGE}.steps=4",
    f"stages.{STAGE}.validate_every=4",
    f"stages.{STAGE}.checkpoint.every_steps=2",
    f"stages.{STAGE}.log_every=1",
    "cluster.try_memory=true",
)
# What depends on the clock.
MEASURED = ("time", "step_s", "data_wait", "flops_per_s", "audio_s_per_s", "validation_s", "save_stall_s", "mfu")


def train(run: RunFolder, world: int, frames: int = 10**9, expected: int = 0) -> None:
    arguments = [SCRIPT, json.dumps({"frames": frames, "place": "forward"}), str(run.path), STAGE]
    started = processes.start(arguments, world, run.path / "log")
    try:
        codes = [process.wait(120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [expected] * world, run.stage(STAGE).rank_log(0).read_text()


def rows(run: RunFolder) -> list[dict]:
    found = []
    for row in read_metrics(run.stage(STAGE).metrics_file):
        found.append({name: value for name, value in row.items() if name not in MEASURED and "goodput" not in name})
    return found


def trials(run: RunFolder) -> list[dict]:
    return [event for event in run.events() if event["event"] == "memory_tried"]


@pytest.mark.parametrize(
    ("world", "expert_parallel", "deepspeed"),
    [
        (1, 1, "zero2"),
        (2, 2, "zero2"),
        pytest.param(1, 1, "zero0", marks=pytest.mark.slow),
        pytest.param(2, 1, "zero1", marks=pytest.mark.slow),
        pytest.param(2, 2, "zero3", marks=pytest.mark.slow),
        pytest.param(1, 1, "zero3", marks=pytest.mark.slow),
    ],
)
def test_a_training_is_to_the_bit_the_one_without_a_trial(make_run, world, expert_parallel, deepspeed):
    """Dropout, router jitter, masks, experts' biases and all: weights, metrics and checkpoints are equal."""
    topology = (
        f"cluster.processes={world}",
        f"cluster.expert_parallel={expert_parallel}",
        f"cluster.deepspeed={deepspeed}",
    )
    tried = make_run("tried", (*SHORT, *topology))
    without = make_run("without", (*SHORT, *topology, "cluster.try_memory=false"))
    train(tried, world)
    train(without, world)
    assert trials(without) == []
    (event,) = trials(tried)
    assert event["micro_batches"] > 1
    assert rows(tried) == rows(without)
    weights, expected = (load_file(run.stage(STAGE).model / "model.safetensors") for run in (tried, without))
    assert weights.keys() == expected.keys()
    for name, values in expected.items():
        assert values.equal(weights[name]), name
    for step in (2, 4):
        saved, saved_without = (run.stage(STAGE).checkpoint(step) for run in (tried, without))
        for path in saved_without.glob("*.safetensors"):
            moments = load_file(saved / path.name)
            for name, values in load_file(path).items():
                assert values.equal(moments[name]), name


def test_a_stage_that_goes_on_with_the_same_shapes_is_not_tried_again(make_run):
    run = make_run("again", (*SHORT, "cluster.processes=1", "cluster.expert_parallel=1"))
    train(run, 1)
    run.stage(STAGE).done_file.unlink()
    train(run, 1)
    assert len(trials(run)) == 1
    # Elsewhere nothing is known.
    record = run.stage(STAGE).path / "memory" / "trial.json"
    record.write_text(record.read_text().replace('"cpu"', '"NVIDIA H100, 79.1 GiB"'))
    run.stage(STAGE).done_file.unlink()
    train(run, 1)
    assert len(trials(run)) == 2


def test_what_does_not_fit_is_named_with_its_length_and_a_budget_that_does(make_run):
    settings = (*SHORT, "batches.seconds=16", "cluster.processes=1", "cluster.expert_parallel=1")
    run = make_run("large", settings)
    train(run, 1, frames=800, expected=2)
    message = read_json(run.stage(STAGE).error_files()[0])["message"]
    assert re.search(r"\d+ utterances of up to \d+\.\d s \(ru_", message)
    assert "before the first step" in message
    match = re.search(r"Set batches\.seconds to ([\d.]+) or less \(it is 16\)", message)
    assert match
    assert not run.stage(STAGE).checkpoint_steps()
    # The budget holds what it promises.
    fits = make_run("fits", (*settings, f"batches.seconds={match[1]}"))
    train(fits, 1, frames=800)


def test_an_utterance_that_does_not_fit_alone_is_named_with_the_length_to_set(make_run):
    run = make_run("single", (*SHORT, "cluster.processes=1", "cluster.expert_parallel=1"))
    train(run, 1, frames=30, expected=2)
    assert "set batches.max_utterance_s below" in read_json(run.stage(STAGE).error_files()[0])["message"]


def test_one_of_several_processes_names_what_does_not_fit_with_what_did(make_run):
    run = make_run("two", (*SHORT, "batches.seconds=16"))
    train(run, 2, frames=1000, expected=2)
    message = read_json(run.stage(STAGE).error_files()[0])["message"]
    assert re.search(r"Set batches\.seconds to [\d.]+ or less", message)


def test_each_range_of_lengths_is_tried_with_its_most_expensive_micro_batch():
    lengths = np.exp(np.random.default_rng(3).uniform(np.log(16000), np.log(16000 * 20), 3000)).astype(np.int64)
    batches = BatchesConfig(lanes=4, seconds=60)
    few = np.ones(len(lengths), np.int32)
    sampler = BatchSampler(
        np.repeat(np.arange(30), 100),
        lengths,
        few,
        few,
        batches,
        seed=1,
        sample_rate_hz=16000,
        encoder_frames=lambda samples: samples // 640,
    )
    worst = worst_micro_batches(sampler)
    longest = sorted(int(batch.samples.max()) for batch in worst)
    assert 4 <= len(worst) <= 8
    for shorter, longer in itertools.pairwise(longest):
        assert longer / shorter < BUCKET_FACTOR**2
    for step in range(sampler.steps_per_epoch):
        for lane in range(4):
            batch = sampler.micro_batch(step, lane)
            size = cost(batches, len(batch.samples), int(batch.samples.max()), 16000)
            bucket = [int(np.log(one.samples.max()) / np.log(BUCKET_FACTOR)) for one in worst]
            position = bucket.index(int(np.log(batch.samples.max()) / np.log(BUCKET_FACTOR)))
            of_bucket = worst[position]
            assert size <= cost(batches, len(of_bucket.samples), int(of_bucket.samples.max()), 16000)
