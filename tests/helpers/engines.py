"""What engines keep in memory: `engines.py OUT EXPERT_PARALLEL DEEPSPEED...`, one engine after the other, as any number
of ranks. Leaves in `rank-RANK.json` the bytes of each by the name of its DeepSpeed configuration.
"""

import json
import sys
from pathlib import Path

import gradients
import torch.distributed as dist

from launcher.recipe import OptimizerConfig, find_deepspeed_config
from launcher.training import parallel
from launcher.training.expert_parallel import spread_experts
from launcher.training.fragments import MOMENTS


def held(engine) -> dict[str, int]:
    """Bytes of the distinct storages that an engine keeps between steps for weights, master weights and moments."""
    parameters, adamw = list(engine.module.parameters()), getattr(engine.optimizer, "optimizer", engine.optimizer)
    # ZeRO 3 gives AdamW its parameters for the length of an update only.
    master = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    tensors = {
        "weights": [tensor for p in parameters for tensor in (p.data, getattr(p, "ds_tensor", None))],
        "master": master or [parameter for group in adamw.param_groups for parameter in group["params"]],
        "moments": [state[key] for state in adamw.state.values() for key in MOMENTS],
    }
    sizes, seen = {}, set()
    for kind, kept in tensors.items():
        storages = [tensor.untyped_storage() for tensor in kept if tensor is not None]
        sizes[kind] = 0
        for storage in storages:
            sizes[kind] += 0 if storage.data_ptr() in seen else storage.nbytes()
            seen.add(storage.data_ptr())
    return sizes


def main(out: Path, expert_parallel: int, names: list[str]) -> None:
    parallel.start_processes(60)
    rank, world = dist.get_rank(), dist.get_world_size()
    lanes = range(rank, gradients.LANES, world)
    found = {}
    for name in names:
        recognizer, task = gradients.build()
        spread_experts(recognizer, expert_parallel, rank)
        file = find_deepspeed_config(name)
        engine = parallel.build_engine(recognizer, OptimizerConfig(), file, len(lanes), "fp32")
        gradients.train_step(engine, task, lanes)
        found[name] = held(engine)
    (out / f"rank-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    dist.destroy_process_group()  # gloo's threads may abort a process that ends with them
