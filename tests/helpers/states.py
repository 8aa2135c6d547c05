"""Trains the small student of gradients.py and keeps its state.

states.py STAGE_FOLDER STEPS EXPERT_PARALLEL DEEPSPEED     from the newest checkpoint there is, then save one

A checkpoint that was loaded is saved again, before any step, as the stage `STAGE_FOLDER/loaded`.
"""

import json
import sys
from pathlib import Path

import gradients
import torch
import torch.distributed as dist

from launcher.recipe import CheckpointConfig, OptimizerConfig, find_deepspeed_config
from launcher.run_folder import StageFolder
from launcher.training import checkpoint, parallel
from launcher.training.expert_parallel import spread_experts
from launcher.training.fragments import full_shapes, owned_fragments, replica_fragments, set_optimizer_step


def train(folder: Path, num_steps: int, expert_parallel: int, deepspeed: str) -> None:
    parallel.start_processes(60)
    rank, world = dist.get_rank(), dist.get_world_size()
    recognizer, task = gradients.build()
    spread_experts(recognizer, expert_parallel, rank)
    lanes = range(rank, gradients.LANES, world)
    # Slow learning: at 2e-3 the rounding of some CPUs grows within ten steps until a frame takes another expert.
    optimizer = OptimizerConfig(peak_learning_rate=3e-4, clip_norm=0.5)
    engine = parallel.build_engine(recognizer, optimizer, find_deepspeed_config(deepspeed), len(lanes), "fp32")
    stage, step = StageFolder(folder), 0
    saved = checkpoint.newest_intact(stage)
    if saved:
        for fragment in [*replica_fragments(engine), *owned_fragments(engine)]:
            saved.fill(fragment)
        set_optimizer_step(engine, saved.step)
        step = saved.step
        save(engine, StageFolder(folder / "loaded"), step, [])
    losses = [gradients.train_step(engine, task, lanes) for _ in range(num_steps)]
    save(engine, stage, step + num_steps, losses)
    if rank == 0:
        (folder / "losses.json").write_text(json.dumps(losses))


def save(engine, stage: StageFolder, step: int, losses: list[float]) -> None:
    buffers = {name: b for name, b in engine.module.named_buffers() if name in engine.module.state_dict()}
    shapes = full_shapes(engine.module) | {name: list(b.shape) for name, b in buffers.items()}
    saver = checkpoint.Saver(stage, CheckpointConfig(keep_last=9), torch.device("cpu"))
    window = {"steps": 1, "sums": {"loss": losses[-1]}} if losses else {"steps": 0, "sums": {}}
    assert saver.start(checkpoint.State(step, owned_fragments(engine), shapes, buffers, {"window": window}))
    assert saver.finish()


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    dist.destroy_process_group()  # gloo's threads may abort a process that ends with them
