"""Takes a training back in the middle of it: `rewind.py OUT DEEPSPEED`; the losses before and after go to OUT."""

import json
import sys
from pathlib import Path

import gradients
import torch
import torch.distributed as dist

from launcher.recipe import OptimizerConfig, find_deepspeed_config
from launcher.training import expert_parallel, parallel
from launcher.training.fragments import owned_fragments, replica_fragments, set_optimizer_step


def main(out: Path, deepspeed: str) -> None:
    parallel.start_processes(60)
    rank, world = dist.get_rank(), dist.get_world_size()
    recognizer, task = gradients.build()
    expert_parallel.spread_experts(recognizer, world, rank)
    lanes = range(rank, gradients.LANES, world)
    optimizer = OptimizerConfig(peak_learning_rate=1e-2, clip_norm=gradients.CLIP_NORM)
    engine = parallel.build_engine(recognizer, optimizer, find_deepspeed_config(deepspeed), len(lanes), "fp32")

    def step() -> float:
        return gradients.train_step(engine, task, lanes)

    step()
    replicas = [replica.values.clone() for replica in replica_fragments(engine)]
    owned = [[part.values.clone(), *map(torch.clone, part.state.values())] for part in owned_fragments(engine)]
    before = [step(), step()]
    for replica, values in zip(replica_fragments(engine), replicas, strict=True):
        replica.values.copy_(values)
    for part, kept in zip(owned_fragments(engine), owned, strict=True):
        for tensor, values in zip([part.values.detach(), *part.state.values()], kept, strict=True):
            tensor.copy_(values)
    set_optimizer_step(engine, 1)
    after = [step(), step()]
    if rank == 0:
        (out / "losses.json").write_text(json.dumps([before, after]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    dist.destroy_process_group()  # gloo's threads may abort a process that ends with them
