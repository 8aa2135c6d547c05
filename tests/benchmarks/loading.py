"""What a loader's first batch and its workers cost: `python -m tests.benchmarks.loading` (a minute on two cores).

Shards of the embedded corpus, eight lanes of 60 s, all measurements in turns: the CPU time from opening the index to
the first batch at a step, and the memory that a loader needs at its most beside what the process had before, by the
number of its threads. Then the share of padding in an epoch by lanes and seconds.
"""

import argparse
import ctypes
import gc
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from data.corpora import CORPORA
from data.corpora.aelita import AelitaConfig
from data.features import FeaturesConfig
from data.loader import Loader
from data.sampling.sampler import BatchesConfig, BatchSampler
from data.sampling.statistics import measure_sampling
from data.shards.index import ShardIndex, read_index
from data.shards.reader import ShardReader
from data.shards.writer import write_split

STEPS = (0, 1_000, 1_000_000)
WORKERS = (0, 1, 2, 4, 8)
# For memory: more than are read ahead.
NUM_STEPS = 8
ROUNDS = 5
PADDED = ((2, 16.0), (8, 16.0), (2, 60.0), (8, 60.0))


def make_sampler(index: ShardIndex, lanes: int = 8, seconds: float = 60.0) -> BatchSampler:
    nothing = np.zeros(len(index), np.int32)
    features = FeaturesConfig()
    return BatchSampler(
        index.shard,
        index.samples,
        nothing,
        nothing,
        BatchesConfig(lanes=lanes, seconds=seconds),
        1,
        index.sample_rate_hz,
        (0.9, 1.0, 1.1),
        encoder_frames=lambda samples: features.num_frames(samples) // 4,
    )


def first_batch_s(folder: Path, step: int) -> float:
    """Seconds of this process's CPU time from opening the index to the first batch at a step."""
    began = time.process_time()
    index = read_index(folder)
    next(Loader(make_sampler(index), ShardReader(index), None, range(8), 0).steps(step, step + 1))
    return time.process_time() - began


def loader_bytes(folder: Path, workers: int) -> int:
    """By how much a loader with so many threads makes this process grow at its most."""
    gc.collect()
    # What earlier loaders gave back would be taken again unseen.
    ctypes.CDLL(None).malloc_trim(0)
    # The kernel's name for: the peak begins anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    index = read_index(folder)
    for _ in Loader(make_sampler(index), ShardReader(index), None, range(8), workers).steps(0, NUM_STEPS):
        pass
    return status_bytes("VmHWM") - before


def status_bytes(name: str) -> int:
    """A size in /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {name}")


def report(folder: Path, rounds: int) -> None:
    """Measure everything on a split, and print it."""
    # Whoever is first opens the decoder and more.
    first_batch_s(folder, 0)
    seconds: dict[int, list[float]] = {step: [] for step in STEPS}
    num_bytes: dict[int, list[int]] = {workers: [] for workers in WORKERS}
    for _ in range(rounds):
        for step in STEPS:
            seconds[step].append(first_batch_s(folder, step))
        for workers in WORKERS:
            num_bytes[workers].append(loader_bytes(folder, workers))

    print("| step | to its first batch, CPU s | over step 0 |\n|---:|---:|---:|")
    for step in STEPS:
        # Of each round, as what else runs changes from one to the next.
        ratios = [later / first for later, first in zip(seconds[step], seconds[0], strict=True)]
        print(f"| {step:,} | {statistics.median(seconds[step]):.2f} | {statistics.median(ratios):.2f} |")
    print("\n| threads | memory of the loader, MB |\n|---:|---:|")
    for workers in WORKERS:
        print(f"| {workers} | {statistics.median(num_bytes[workers]) / 1e6:.0f} |")
    print("\n| lanes x seconds | padding |\n|---|---:|")
    index = read_index(folder)
    for lanes, budget_s in PADDED:
        padding = measure_sampling(make_sampler(index, lanes, budget_s)).as_dict()["padding"]
        print(f"| {lanes} x {budget_s:g} | {padding:.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, help="a prepared split, instead of the embedded corpus")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    if arguments.shards is not None:
        report(arguments.shards, arguments.rounds)
        return
    with tempfile.TemporaryDirectory(prefix="chorus-loading-") as name:
        folder = Path(name) / "train"
        selection = CORPORA["aelita"].select(AelitaConfig(), 1)
        utterances = [utterance for utterance in selection.utterances if utterance.split == "train"]
        write_split(utterances, folder, sample_rate_hz=16000, shard_seconds=60, seed=1, workers=2)
        report(folder, arguments.rounds)


if __name__ == "__main__":
    main()
