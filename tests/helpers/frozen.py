"""Trains the small student of gradients.py with frozen parts, saves it, loads it into another engine and goes on.

frozen.py STAGE_FOLDER EXPERT_PARALLEL DEEPSPEED PATTERN...
"""

import json
import sys
from pathlib import Path

import gradients
import torch.distributed as dist
from states import save

from launcher.recipe import OptimizerConfig, find_deepspeed_config
from launcher.recipe.freezing import frozen_names
from launcher.run_folder import StageFolder
from launcher.training import checkpoint, parallel
from launcher.training.expert_parallel import spread_experts
from launcher.training.fragments import owned_fragments, replica_fragments, set_optimizer_step
from launcher.training.freezing import freeze


def build(expert_parallel: int, deepspeed: str, patterns: list[str]):
    rank, world = dist.get_rank(), dist.get_world_size()
    recognizer, task = gradients.build()
    spread_experts(recognizer, expert_parallel, rank)
    frozen = freeze(recognizer, frozen_names(patterns, dict(recognizer.named_parameters())))
    lanes = range(rank, gradients.LANES, world)
    # With so much decay a frozen weight that had any would be far from where it was.
    optimizer = OptimizerConfig(peak_learning_rate=1e-2, weight_decay=0.5, clip_norm=0.5)
    file = find_deepspeed_config(deepspeed)
    return parallel.build_engine(recognizer, optimizer, file, len(lanes), "fp32"), task, lanes, frozen


def main(folder: Path, expert_parallel: int, deepspeed: str, patterns: list[str]) -> None:
    parallel.start_processes(60)
    engine, task, lanes, frozen = build(expert_parallel, deepspeed, patterns)
    stage = StageFolder(folder)
    losses = [gradients.train_step(engine, task, lanes) for _ in range(2)]
    save(engine, stage, 2, losses)
    states = [fragment.state for fragment in owned_fragments(engine) if not fragment.state]
    with_decay = sum(parameter.numel() for group in _adamw(engine).param_groups for parameter in group["params"])
    losses += [gradients.train_step(engine, task, lanes)]

    again, task, lanes, _ = build(expert_parallel, deepspeed, patterns)
    saved = checkpoint.newest_intact(stage)
    assert saved
    for fragment in [*replica_fragments(again), *owned_fragments(again)]:
        saved.fill(fragment)
    set_optimizer_step(again, saved.step)
    repeated = gradients.train_step(again, task, lanes)
    if dist.get_rank() == 0:
        result = {
            "losses": losses,
            "repeated": repeated,
            "values": frozen.values,
            "all_values": frozen.all_values,
            "text": frozen.describe(),
            "without_moments": len(states),
            "optimized": with_decay,
        }
        (folder / "result.json").write_text(json.dumps(result))


def _adamw(engine):
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
    dist.destroy_process_group()  # gloo's threads may abort a process that ends with them
