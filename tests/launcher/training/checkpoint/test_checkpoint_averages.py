"""Averages of weights are the plain averages, whatever topology trained, and of the checkpoints that were asked for."""

import processes
import pytest
import torch
import torch.distributed as dist
from averages import DECAY
from paths import HELPERS
from saves import state

from launcher.errors import CheckpointError
from launcher.recipe import AverageConfig, CheckpointConfig
from launcher.run_folder import StageFolder
from launcher.training.checkpoint import Checkpoint, Saver, averaged_weights

SCRIPT = HELPERS / "averages.py"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "topologies",
    [
        # One process, then two with spread experts and the most that ZeRO shards.
        pytest.param([(1, 1, 1), (2, 2, 3)], id="default"),
        pytest.param([(1, 1, 0), (2, 2, 2), (4, 4, 3), (4, 1, 0), (2, 2, 1)], id="many", marks=pytest.mark.slow),
    ],
)
def test_a_running_average_is_the_plain_average_to_the_bit_on_every_topology(tmp_path, topologies):
    stage = StageFolder(tmp_path)
    steps_each = 4
    for world, expert_parallel, zero in topologies:
        arguments = [str(SCRIPT), str(stage.path), str(steps_each), str(expert_parallel), f"zero{zero}"]
        processes.run(arguments, world, tmp_path / "log", timeout_s=300)

    first = Checkpoint(stage.checkpoint(0))
    expected = first.weights()
    assert any(name.endswith("bias") and "router" in name for name in expected)
    num_steps = steps_each * len(topologies)
    for step in range(1, num_steps + 1):
        weights = Checkpoint(stage.checkpoint(step)).weights()
        decay = min(DECAY, (1 + step) / (10 + step))
        for name, average in expected.items():
            expected[name] = average + (weights[name] - average) * (1 - decay)
    averages, steps = averaged_weights(stage, AverageConfig(kind="running"))
    assert steps == [num_steps]
    last = Checkpoint(stage.checkpoint(num_steps)).weights()
    assert averages.keys() == last.keys()
    for name, average in averages.items():
        assert torch.equal(average, expected[name]), name
    assert any(not torch.equal(averages[name], last[name]) for name in averages)


@pytest.fixture
def stage(tmp_path):
    """Checkpoints of steps 1 to 5, whose weights are all their step, with error rates for some."""
    folder = StageFolder(tmp_path / "stage")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        saver = Saver(folder, CheckpointConfig(keep_last=9), torch.device("cpu"))
        for step, cer in ((1, 0.5), (2, 0.2), (3, None), (4, 0.2), (5, 0.3)):
            assert saver.start(state(step, validation_cer=cer))
            assert saver.finish()
    finally:
        dist.destroy_process_group()
    return folder


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        (None, [5]),
        (AverageConfig(kind="last", checkpoints=3), [3, 4, 5]),
        (AverageConfig(kind="best", checkpoints=3), [2, 4, 5]),
        # Of equals the later.
        (AverageConfig(kind="best", checkpoints=2), [2, 4]),
        # All there are that were validated.
        (AverageConfig(kind="best", checkpoints=9), [1, 2, 4, 5]),
    ],
    ids=["none", "last 3", "best 3", "best 2", "best 9"],
)
def test_the_last_or_the_best_checkpoints_are_averaged(stage, average, expected):
    weights, steps = averaged_weights(stage, average)
    assert steps == expected
    assert torch.equal(weights["weight"], torch.full((8,), sum(expected) / len(expected)))
    # Buffers too.
    assert torch.equal(weights["bias"], torch.ones(2))


@pytest.mark.parametrize(
    ("average", "last_step", "expected"),
    [
        (None, 2, [2]),
        (AverageConfig(kind="last", checkpoints=2), 4, [3, 4]),
        (AverageConfig(kind="last", checkpoints=9), 2, [1, 2]),
        (AverageConfig(kind="best", checkpoints=2), 3, [1, 2]),
        (AverageConfig(kind="best", checkpoints=2), 4, [2, 4]),
    ],
    ids=["none", "last 2", "last 9", "best 2 of 2", "best 2 of 3"],
)
def test_an_average_up_to_a_step_leaves_out_what_came_later(stage, average, last_step, expected):
    weights, steps = averaged_weights(stage, average, last_step)
    assert steps == expected
    assert torch.equal(weights["weight"], torch.full((8,), sum(expected) / len(expected)))


def test_a_damaged_checkpoint_is_named_and_no_part_of_an_average(stage, caplog):
    (stage.checkpoint(4) / "rank-00000.safetensors").write_bytes(b"")
    for kind, expected in (("last", [3, 5]), ("best", [2, 5])):
        weights, steps = averaged_weights(stage, AverageConfig(kind=kind, checkpoints=2))
        assert steps == expected
        assert weights["weight"][0] == sum(expected) / 2
    assert "step-00000004" in caplog.text


def test_a_checkpoint_of_a_training_without_a_running_average_is_refused(stage):
    with pytest.raises(CheckpointError, match="holds no running average"):
        averaged_weights(stage, AverageConfig(kind="running"))


def test_a_stage_without_error_rates_has_no_best_checkpoints(stage):
    for step in (1, 2, 4, 5):
        (stage.checkpoint(step) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="nothing to average"):
        averaged_weights(stage, AverageConfig(kind="best"))
