"""How long training stands still for a checkpoint, and how long the checkpoint takes to be in place.

    python -m tests.benchmarks.save_stall FOLDER --parameters 25000000

One process with the weights and moments of that many parameters; FOLDER is on the disk to measure, and is not kept.
"""

import argparse
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from launcher.recipe import CheckpointConfig
from launcher.run_folder import StageFolder
from launcher.training.checkpoint import Saver, State

NUM_TENSORS, NUM_SAVES = 50, 5


def state(step: int, tensors: list[torch.Tensor]) -> State:
    parts = [
        SimpleNamespace(name=str(index), start=0, values=tensor, state={"m": tensor, "v": tensor}, writes=True)
        for index, tensor in enumerate(tensors)
    ]
    shapes = {part.name: list(part.values.shape) for part in parts}
    return State(step, parts, shapes, {}, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parameters", type=int, default=25_000_000)
    options = parser.parse_args()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    stage = StageFolder(options.folder / "save-stall")
    saver = Saver(stage, CheckpointConfig(keep_last=1), torch.device("cpu"))
    tensors = [torch.randn(options.parameters // NUM_TENSORS) for _ in range(NUM_TENSORS)]
    stalls_s, durations_s = [], []
    try:
        for step in range(NUM_SAVES):
            started = time.perf_counter()
            assert saver.start(state(step, tensors))
            stalls_s.append(time.perf_counter() - started)
            assert saver.finish()
            durations_s.append(time.perf_counter() - started)
    finally:
        shutil.rmtree(stage.path)
    size_mb = options.parameters * 12 / 1e6
    for what, measured_s in (("stall", stalls_s), ("in place after", durations_s)):
        print(f"{size_mb:.0f} MB, {NUM_SAVES} saves: {what} {min(measured_s):.2f} to {max(measured_s):.2f} s")


if __name__ == "__main__":
    main()
