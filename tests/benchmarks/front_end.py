"""What front-ends of several kinds and widths cost: `python -m tests.benchmarks.front_end [--rounds N]`.

Forward and backward of the front-end alone, to frames of width 256, on 8 utterances of 5 to 16 s. What they are worth
is measured by the recipe beside this file.
"""

import argparse
from collections.abc import Callable

import torch
from torch import nn

from model.layers.subsampling import ConvolutionSubsampling, SubsamplingConfig
from tests.benchmarks.encoder import FRAMES_PER_S, MEL_BINS, SECONDS
from tests.benchmarks.interleaved import step_of, time_in_turns

WIDTH = 256
SETTINGS = [
    *({"convolutions": "separable", "channels": channels} for channels in (16, 32, 64)),
    *({"convolutions": "full", "channels": channels} for channels in (16, 32, 64, WIDTH)),
]


def measure(precision: str, rounds: int) -> dict[str, float]:
    """Seconds of each front-end."""
    torch.manual_seed(1)
    lengths_B = torch.tensor([round(seconds * FRAMES_PER_S) for seconds in SECONDS])
    features_BTF = torch.randn(len(lengths_B), int(lengths_B.max()), MEL_BINS)

    def run(front_end: nn.Module) -> Callable[[], None]:
        return step_of(lambda: front_end(features_BTF, lengths_B)[0], precision)

    variants = {}
    for settings in SETTINGS:
        config = SubsamplingConfig.model_validate(settings)
        name = f"{config.convolutions}, {config.channels} channels"
        variants[name] = run(ConvolutionSubsampling(config, MEL_BINS, WIDTH))
    return time_in_turns(variants, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    fp32, bf16 = (measure(precision, rounds) for precision in ("fp32", "bf16"))
    print("| front-end | fp32, ms | bf16, ms |\n|---|---:|---:|")
    for name in fp32:
        print(f"| {name} | {1000 * fp32[name]:.0f} | {1000 * bf16[name]:.0f} |")


if __name__ == "__main__":
    main()
