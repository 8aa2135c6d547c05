"""The shared-expert student against the full encoder: `python -m tests.benchmarks.student [--rounds N]`.

The encoders of the recipe `base`: twelve blocks, or two that serve six layers each with four experts. Each runs in a
process of its own, so that its peak memory is its own: one step is forward, backward and AdamW on 8 utterances of 5 to
16 s.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from launcher.recipe import load_recipe
from model.encoder import Encoder, EncoderConfig
from tests.benchmarks.encoder import FRAMES_PER_S, MEL_BINS, SECONDS


def measure(config: EncoderConfig, rounds: int) -> dict[str, float]:
    torch.manual_seed(1)
    before = _peak_bytes()
    encoder = Encoder(config, MEL_BINS)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-4)
    lengths_B = torch.tensor([round(seconds * FRAMES_PER_S) for seconds in SECONDS])
    features_BTF = torch.randn(len(lengths_B), int(lengths_B.max()), MEL_BINS)
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        encoder(features_BTF, lengths_B).frames_BSD.square().mean().backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    parameters = list(encoder.parameters())
    moments = [tensor for state in optimizer.state.values() for tensor in state.values() if tensor.ndim]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.safetensors"
        tensors = {f"weight-{number}": tensor.detach() for number, tensor in enumerate(parameters)}
        save_file(tensors | {f"moment-{number}": tensor for number, tensor in enumerate(moments)}, file)
        checkpoint_bytes = file.stat().st_size
    return {
        "s per step": statistics.median(times[1:]),
        "parameters, MB": sum(tensor.nbytes for tensor in parameters) / 1e6,
        "moments, MB": sum(tensor.nbytes for tensor in moments) / 1e6,
        "peak of the process over its start, MB": (_peak_bytes() - before) / 1e6,
        "weights and moments on disk, MB": checkpoint_bytes / 1e6,
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def encoder_of(stage: str, name: str = "base") -> EncoderConfig:
    """The encoder of a recipe's stage, without dropout. `base` has no corpus of its own and wants one named."""
    recipe = load_recipe(name, ["corpus.shards=shards"] if name == "base" else [])
    return recipe.training_stage(stage).model.encoder.model_copy(update={"dropout": 0.0})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("teacher", "student"), help="measure one and print JSON")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(encoder_of(arguments.only), arguments.rounds)))
        return
    found = {}
    for stage in ("teacher", "student"):
        command = [sys.executable, "-m", "tests.benchmarks.student", "--only", stage, "--rounds", str(arguments.rounds)]
        found[stage] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print("| | full | shared, with experts | ratio |\n|---|---:|---:|---:|")
    for name, full in found["teacher"].items():
        shared = found["student"][name]
        print(f"| {name} | {full:.2f} | {shared:.2f} | {shared / full:.2f} |")


if __name__ == "__main__":
    main()
