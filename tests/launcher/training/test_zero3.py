"""ZeRO 3 cuts every parameter into shards; checkpoints cross to and from it like between any other topologies."""

import json
from pathlib import Path

import processes
import pytest
import torch
from conftest import STAGE

from launcher.run_folder import StageFolder, read_json
from launcher.tracking import read_metrics
from launcher.training.checkpoint import Checkpoint

SCRIPT = Path(__file__).with_name("states.py")


def train(folder: Path, num_steps: int, world: int, expert_parallel: int, deepspeed: str) -> list[float]:
    folder.mkdir(exist_ok=True)
    arguments = [str(SCRIPT), str(folder), str(num_steps), str(expert_parallel), deepspeed]
    processes.run(arguments, world, folder / "log")
    return json.loads((folder / "losses.json").read_text())


def everything(folder: Path, step: int) -> dict[tuple[str, str], torch.Tensor]:
    checkpoint = Checkpoint(StageFolder(folder).checkpoint(step))
    return {(kind, name): checkpoint.whole(kind, name) for name in checkpoint.shapes for kind in checkpoint.kinds(name)}


def assert_equal_states(before: dict, after: dict) -> None:
    assert {kind for kind, _ in before} == {"weight", "exp_avg", "exp_avg_sq", "buffer"}
    assert before.keys() == after.keys()
    for key, values in before.items():
        assert torch.equal(values, after[key]), key


@pytest.mark.parametrize(
    "topologies",
    [
        [(2, 2, "zero3"), (1, 1, "zero2"), (2, 1, "zero3")],
        pytest.param([(1, 1, "zero0"), (4, 2, "zero3"), (2, 2, "zero1"), (4, 4, "zero3")], marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_across_the_border_of_zero_3(tmp_path, topologies):
    """Trained on the first topology, loaded and saved on all of them, trained on by the last."""
    folder, undisturbed = tmp_path / "stage", tmp_path / "undisturbed"
    losses = train(folder, 3, *topologies[0])
    before = everything(folder, 3)
    for topology in topologies[1:]:
        train(folder, 0, *topology)
        assert_equal_states(before, everything(folder, 3))
    losses += train(folder, 2, *topologies[-1])
    assert losses == pytest.approx(train(undisturbed, 5, 1, 1, "zero0"), rel=1e-5)


def test_a_run_that_validates_on_its_way_measures_the_same_under_zero_3(make_run):
    measured = []
    for deepspeed in ("zero2", "zero3"):
        short = [f"stages.{STAGE}.{key}={value}" for key, value in {"steps": 6, "validate_every": 3}.items()]
        run = make_run(deepspeed, (f"cluster.deepspeed={deepspeed}", *short))
        processes.run(["-m", "launcher.worker", str(run.path), STAGE], 2, run.path / "log")
        assert read_json(run.stage(STAGE).done_file) == {"status": "done", "step": 6}
        rows = read_metrics(run.stage(STAGE).metrics_file)
        names = ("loss", "grad_norm", "validation/loss", "validation/cer")
        measured.append([row[name] for row in rows for name in names if name in row])
    assert len(measured[0]) == 2 * 4
    assert measured[1] == pytest.approx(measured[0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", ["zero1", "zero2", "zero3"])
def test_a_training_taken_back_on_its_way_repeats_itself(tmp_path, deepspeed):
    script = Path(__file__).with_name("rewind.py")
    processes.run([str(script), str(tmp_path), deepspeed], 2, tmp_path / "log")
    before, after = json.loads((tmp_path / "losses.json").read_text())
    assert before == after
