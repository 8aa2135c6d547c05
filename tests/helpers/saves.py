"""Saves a state of one parameter per process twice, as any number of ranks, without DeepSpeed: saves.py STAGE_FOLDER

The last rank cannot write its part of the second save. Steps go on until every process knows how a save ended.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from launcher.recipe import CheckpointConfig
from launcher.run_folder import StageFolder
from launcher.training.checkpoint import Saver, State, saving

SIZE = 8


def state(step: int, rank: int = 0, world: int = 1, validation_cer: float | None = None, size: int = SIZE) -> State:
    """Weights that are all `step`, of which each process owns an equal interval, and a moment that is all -step."""
    own = size // world
    values = torch.full((own,), float(step))
    # Looks like a Fragment, whose module would import DeepSpeed.
    part = SimpleNamespace(name="weight", start=rank * own, values=values, state={"exp_avg": -values}, writes=True)
    return State(step, [part], {"weight": [size], "bias": [2]}, {"bias": torch.ones(2)}, {}, validation_cer)


def cannot_write(tensors, path) -> None:
    path.write_bytes(b"a part of it")
    raise OSError(28, "No space left on device")


def save(saver: Saver, step: int) -> int:
    """Start a save and make steps until no process writes any more; how many processes failed."""
    assert saver.start(state(step, dist.get_rank(), dist.get_world_size()))
    while True:
        progress = saver.progress()
        sums = torch.tensor([progress["save/writing"], progress["save/failed"]])
        dist.all_reduce(sums)
        saver.settle(*sums.tolist())
        if not sums[0]:
            return int(sums[1])


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    saver = Saver(StageFolder(folder), CheckpointConfig(), torch.device("cpu"))
    assert save(saver, 1) == 0
    assert saver.finish()
    if dist.get_rank() == dist.get_world_size() - 1:
        saving.save_tensors = cannot_write
    assert save(saver, 2) == 1
    assert not saver.finish()
    dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    dist.destroy_process_group()  # gloo's threads may abort a process that ends with them
