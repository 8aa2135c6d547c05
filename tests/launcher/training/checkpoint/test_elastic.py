"""A training may move on its way: to other numbers of processes, other shares of the experts, other ZeRO stages.

At every move, what is loaded equals what was saved, bit for bit, and the next losses are those of one process that goes
on from the same checkpoint: fifty of them, or twelve where the default run samples a move. A reference that ran from
the first step would have its own rounding: after some 150 steps a frame whose two best experts are nearly tied takes
the other one, and the curves part.
"""

import json
import shutil
from pathlib import Path

import processes
import pytest
import torch
from paths import HELPERS

from launcher.run_folder import StageFolder
from launcher.training.checkpoint import Checkpoint

SCRIPT = HELPERS / "states.py"
MANY, FEW = 50, 12
# (processes, expert parallel, ZeRO stage)
Topology = tuple[int, int, int]


def train(folder: Path, num_steps: int, topology: Topology) -> list[float]:
    world, expert_parallel, zero = topology
    folder.mkdir(exist_ok=True)
    arguments = [str(SCRIPT), str(folder), str(num_steps), str(expert_parallel), f"zero{zero}"]
    processes.run(arguments, world, folder / "log", timeout_s=300)
    return json.loads((folder / "losses.json").read_text())


def everything(folder: Path, step: int) -> dict[tuple[str, str], torch.Tensor]:
    saved = Checkpoint(StageFolder(folder).checkpoint(step))
    return {(kind, name): saved.whole(kind, name) for name in saved.shapes for kind in saved.kinds(name)}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("topologies", "steps"),
    [
        # More processes, experts spread, and the most that ZeRO shards, in one move.
        pytest.param([(1, 1, 1), (2, 2, 3)], FEW, id="default"),
        pytest.param([(1, 1, 1), (2, 2, 3)], MANY, id="default, all steps", marks=pytest.mark.slow),
        # Processes 1 -> 2 -> 4 -> 2, experts over 1 -> 2 -> 4 -> 1 of them, ZeRO 1 -> 2 -> 3 -> 1.
        pytest.param([(1, 1, 1), (2, 2, 2), (4, 4, 3), (2, 1, 1)], MANY, id="there", marks=pytest.mark.slow),
        pytest.param([(2, 1, 1), (4, 4, 3), (2, 2, 2), (1, 1, 1)], MANY, id="back", marks=pytest.mark.slow),
        pytest.param(
            [(2, 2, 3), (2, 1, 2), (4, 2, 1), (4, 4, 2), (1, 1, 3)], MANY, id="zero-3-first", marks=pytest.mark.slow
        ),
        pytest.param(
            [(1, 1, 0), (4, 2, 3), (2, 2, 1), (4, 1, 0), (1, 1, 2)], MANY, id="zero-0", marks=pytest.mark.slow
        ),
    ],
)
def test_a_training_moves_from_topology_to_topology(tmp_path, topologies, steps):
    moved, reference = tmp_path / "moved", tmp_path / "reference"
    for move, topology in enumerate(topologies):
        if move:
            shutil.copytree(moved, reference)
        expected = train(reference, steps, (1, 1, 0))
        losses = train(moved, steps, topology)
        assert losses == pytest.approx(expected, rel=1e-5), topology
        shutil.rmtree(reference)
        if move:
            saved, loaded = everything(moved, move * steps), everything(moved / "loaded", move * steps)
            assert {kind for kind, _ in saved} == {"weight", "exp_avg", "exp_avg_sq", "buffer"}
            assert saved.keys() == loaded.keys()
            for key, values in saved.items():
                assert torch.equal(values, loaded[key]), (topology, key)
