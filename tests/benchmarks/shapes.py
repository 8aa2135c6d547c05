"""Students in bf16 on new utterances in every step: `OMP_NUM_THREADS=1 python -m tests.benchmarks.shapes [--rounds N]`.

Experts multiply with as many rows as they get frames, or with a few more, so that shapes of products recur
(`model/moe/row_padding.py`). The encoders of the students of `base` and `mini`, forward and backward, on five
utterances of 3 to 9 s; each variant draws its own, so that none meets the shapes of the other.
"""

import argparse
import random
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor

from model.encoder import Encoder
from tests.benchmarks.encoder import FRAMES_PER_S, MEL_BINS
from tests.benchmarks.interleaved import keep_freed_memory, step_of, time_in_turns
from tests.benchmarks.student import encoder_of

UTTERANCES, SHORTEST_S, LONGEST_S = 5, 3.0, 9.0


def steps(encoder: Encoder, seed: int) -> Callable[[], None]:
    draw = random.Random(seed)
    features_BTF = torch.randn(UTTERANCES, round(LONGEST_S * FRAMES_PER_S), MEL_BINS)

    def forward() -> Tensor:
        encoder.zero_grad(set_to_none=True)
        lengths_B = torch.tensor([round(draw.uniform(SHORTEST_S, LONGEST_S) * FRAMES_PER_S) for _ in range(UTTERANCES)])
        return encoder(features_BTF[:, : int(lengths_B.max())], lengths_B).frames_BSD

    return step_of(forward, "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    keep_freed_memory()
    print("| student of | rows as frames, ms per step | rows that recur | ratio |\n|---|---:|---:|---:|")
    for name in ("base", "mini"):
        torch.manual_seed(1)
        encoder = Encoder(encoder_of("student", name), MEL_BINS)
        as_frames = patch("model.moe.row_padding.pad_to_bucket", lambda rows: rows)(steps(encoder, seed=1))
        times = time_in_turns({"as frames": as_frames, "recurring": steps(encoder, seed=2)}, rounds)
        before, after = (1000 * seconds for seconds in times.values())
        print(f"| {name} | {before:.0f} | {after:.0f} | {before / after:.2f} |", flush=True)


if __name__ == "__main__":
    main()
