"""One layer of experts against DeepSpeed's and a dense one: `python -m tests.benchmarks.experts [--rounds N]`.

Width 256, feed-forward width 1024, 8 experts, one per frame, 2,000 frames: forward and backward on one process, with
as many threads as there are cores, and with one, as each of several processes has it. The dense layer multiplies with
as many parameters as a frame is sent to.
"""

import argparse
import itertools
import os
from collections.abc import Callable

import deepspeed
import torch
from deepspeed.moe.layer import MoE
from torch import Tensor, nn

from launcher.launching.node import num_cores
from launcher.training.parallel import start_processes
from model.experts import MixtureOfExperts
from model.feedforward import FeedForward
from model.router import ExpertsConfig, Router
from tests.benchmarks.interleaved import keep_freed_memory, precision_context, time_in_turns

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
        def step() -> None:
            layer.zero_grad(set_to_none=True)
            with precision_context(precision):
                output = layer(x_ND.detach().requires_grad_())
            output.float().square().mean().backward()

        return step

    return time_in_turns({name: run(layer) for name, layer in layers.items()}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29577",
    }
    start_processes(60)
    keep_freed_memory()
    print("| threads | | layer | ms, forward and backward | over dense |\n|---|---|---|---:|---:|")
    for threads, precision in itertools.product(sorted({num_cores(), 1}, reverse=True), ("fp32", "bf16")):
        torch.set_num_threads(threads)
        times = measure(precision, rounds)
        for name, seconds in times.items():
            row = (threads, precision, name, f"{1000 * seconds:.1f}", f"{seconds / times['dense']:.2f}")
            print(f"| {' | '.join(map(str, row))} |", flush=True)
    deepspeed.comm.destroy_process_group()


if __name__ == "__main__":
    main()
