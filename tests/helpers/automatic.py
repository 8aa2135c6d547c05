"""Two layers that share their experts, under DeepSpeed's automatic expert parallelism: `automatic.py OUT`.

Leaves in `rank-RANK.pt` whether the layers share before and after DeepSpeed took the model.
"""

import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from launcher.training import parallel

EXPERTS, WIDTH, HIDDEN = 4, 8, 16


class Experts(nn.Module):
    """Gated experts as stacks, the form that the automatic mode takes."""

    def __init__(self):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH))
        self.w2 = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN))
        self.w3 = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH))


class Layer(nn.Module):
    def __init__(self, experts: Experts):
        super().__init__()
        self.gate, self.experts = nn.Linear(WIDTH, EXPERTS, bias=False), experts


class Shared(nn.Module):
    """Only built and handed over, never run."""

    def __init__(self):
        super().__init__()
        experts = Experts()
        self.layers = nn.ModuleList(Layer(experts) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x

    def shares(self) -> bool:
        return self.layers[0].experts is self.layers[1].experts


CONFIGURATION = {
    "train_micro_batch_size_per_gpu": 1,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    "zero_optimization": {"stage": 2},
    "expert_parallel": {
        "enabled": True,
        "autoep_size": 2,
        "moe_layer_pattern": r"layers\.\d+",
        "router_pattern": "gate",
        "expert_pattern": "experts",
        "expert_w1": "w1",
        "expert_w2": "w2",
        "expert_w3": "w3",
        "top_k": 1,
        "use_grouped_mm": False,
    },
}


def main(out: Path) -> None:
    parallel.start_processes(60)
    model = Shared()
    before = model.moe.row_padding()
    engine, *_ = deepspeed.initialize(model=model, config=CONFIGURATION)
    torch.save({"before": before, "after": engine.module.shares()}, out / f"rank-{dist.get_rank()}.pt")
    dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    dist.destroy_process_group()  # gloo's threads may abort a process that ends with them
