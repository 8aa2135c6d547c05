"""One layer of experts against DeepSpeed's and a dense one: `python -m tests.benchmarks.experts [--rounds N]`.

As two processes with one thread each: `torchrun --nproc-per-node 2 -m tests.benchmarks.experts`. On a GPU:
`--device cuda --width 512 --frames 32768`.

By default of width 256, feed-forward width 1024, 8 experts, one per frame, 2,000 frames: forward and backward, on each
process by itself. Frames are new in each round, as in a training: an expert seldom gets as many as in the one before.
The dense layer multiplies with as many parameters as a frame is sent to.
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

EXPERTS = 8


class Ours(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        config = ExpertsConfig(count=EXPERTS)
        self.router, self.mixture = Router(width, EXPERTS, config.router), MixtureOfExperts(EXPERTS, width, 4 * width)

    def forward(self, x_ND: Tensor) -> Tensor:
        routing = self.router(x_ND)
        if torch.is_autocast_enabled(x_ND.device.type):
            x_ND = x_ND.to(torch.bfloat16)
        return self.mixture(x_ND, routing)


class Stock(nn.Module):
    def __init__(self, width: int, drop_tokens: bool):
        super().__init__()
        self.layer = MoE(
            width, FeedForward(width, 4 * width), num_experts=EXPERTS, k=1, drop_tokens=drop_tokens, use_rts=False
        )
        self.layer.set_deepspeed_parallelism()

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.layer(x_ND)[0]


def measure(precision: str, rounds: int, width: int, frames: int, device: str) -> dict[str, float]:
    torch.manual_seed(1)
    x_ND = torch.randn(frames, width, device=device)
    layers = {
        "dense": FeedForward(width, 4 * width),
        "experts, ours": Ours(width),
        "experts, DeepSpeed's, no frame dropped": Stock(width, drop_tokens=False),
        "experts, DeepSpeed's, capacity 1": Stock(width, drop_tokens=True),
    }
    for layer in layers.values():
        layer.to(device)

    def run(layer: nn.Module) -> Callable[[], None]:
        def forward() -> Tensor:
            layer.zero_grad(set_to_none=True)
            return layer(x_ND.detach().requires_grad_())

        return step_of(forward, precision, device=device)

    return time_in_turns({name: run(layer) for name, layer in layers.items()}, rounds, before_round=x_ND.normal_)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577"}
    os.environ |= alone | os.environ  # torchrun has said otherwise
    start_processes(60)
    if options.device == "cpu":
        keep_freed_memory()
    tell("| | layer | ms, forward and backward | over dense |\n|---|---|---:|---:|")
    for precision in ("fp32", "bf16"):
        times = measure(precision, options.rounds, options.width, options.frames, options.device)
        for name, seconds in times.items():
            tell(f"| {precision} | {name} | {1000 * seconds:.1f} | {seconds / times['dense']:.2f} |")
    leave_processes()


if __name__ == "__main__":
    main()
