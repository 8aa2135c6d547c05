"""One layer of experts against DeepSpeed's and a dense one: `python -m tests.benchmarks.experts [--rounds N]`.

As two processes with one thread each: `torchrun --nproc-per-node 2 -m tests.benchmarks.experts`.

Width 256, feed-forward width 1024, 8 experts, one per frame, 2,000 frames: forward and backward, on each process by
itself. Frames are new in each round, as in a training: an expert seldom gets as many as in the one before. The dense
layer multiplies with as many parameters as a frame is sent to.
"""

import argparse
import os
from collections.abc import Callable

import torch
from deepspeed.moe.layer import MoE
from torch import Tensor, nn

from launcher.training.parallel import start_processes
from model.layers.feedforward import FeedForward
from model.moe.experts import MixtureOfExperts
from model.moe.router import ExpertsConfig, Router
from tests.benchmarks.interleaved import keep_freed_memory, leave_processes, step_of, tell, time_in_turns

WIDTH, HIDDEN, EXPERTS, FRAMES = 256, 1024, 8, 2000


class Ours(nn.Module):
    def __init__(self):
        super().__init__()
        config = ExpertsConfig(count=EXPERTS)
        self.router, self.mixture = Router(WIDTH, EXPERTS, config.router), MixtureOfExperts(EXPERTS, WIDTH, HIDDEN)

    def forward(self, x_ND: Tensor) -> Tensor:
        routing = self.router(x_ND)
        if torch.is_autocast_enabled("cpu"):
            x_ND = x_ND.to(torch.bfloat16)
        return self.mixture(x_ND, routing)


class Stock(nn.Module):
    def __init__(self, drop_tokens: bool):
        super().__init__()
        self.layer = MoE(
            WIDTH, FeedForward(WIDTH, HIDDEN), num_experts=EXPERTS, k=1, drop_tokens=drop_tokens, use_rts=False
        )
        self.layer.set_deepspeed_parallelism()

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.layer(x_ND)[0]


def measure(precision: str, rounds: int) -> dict[str, float]:
    torch.manual_seed(1)
    x_ND = torch.randn(FRAMES, WIDTH)
    layers = {
        "dense": FeedForward(WIDTH, HIDDEN),
        "experts, ours": Ours(),
        "experts, DeepSpeed's, no frame dropped": Stock(drop_tokens=False),
        "experts, DeepSpeed's, capacity 1": Stock(drop_tokens=True),
    }

    def run(layer: nn.Module) -> Callable[[], None]:
        def forward() -> Tensor:
            layer.zero_grad(set_to_none=True)
            return layer(x_ND.detach().requires_grad_())

        return step_of(forward, precision)

    return time_in_turns({name: run(layer) for name, layer in layers.items()}, rounds, before_round=x_ND.normal_)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577"}
    os.environ |= alone | os.environ  # torchrun has said otherwise
    start_processes(60)
    keep_freed_memory()
    tell("| | layer | ms, forward and backward | over dense |\n|---|---|---:|---:|")
    for precision in ("fp32", "bf16"):
        times = measure(precision, rounds)
        for name, seconds in times.items():
            tell(f"| {precision} | {name} | {1000 * seconds:.1f} | {seconds / times['dense']:.2f} |")
    leave_processes()


if __name__ == "__main__":
    main()
