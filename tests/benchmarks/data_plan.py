"""What the data plan costs: `python -m tests.benchmarks.data_plan` (under three minutes on two cores).

Ten million utterances, whose index is written by numpy and read like any other: time to open the index and the
sampler, time from a fresh sampler to the first micro-batch of an early and a late step, and the peak memory of the
process. Then 600 utterances of the embedded corpus as real shards: time from nothing to the first batch of a resumed
training, audio included. Each measurement runs in a process of its own.
"""

import argparse
import json
import math
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.corpora import CORPORA
from data.corpora.aelita import AelitaConfig
from data.features import FeaturesConfig
from data.loader import Loader
from data.sampling.sampler import BatchesConfig, BatchSampler
from data.sampling.token_counts import token_counts
from data.shards.index import ShardIndex, read_index
from data.shards.reader import ShardReader
from data.shards.writer import write_split
from data.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

RATE_HZ = 16000
SPEEDS = (0.9, 1.0, 1.1)
STEPS = (0, 100_000, 10_000_000)
# Shards of about an hour.
UTTERANCES_PER_SHARD = 800
NUM_EMBEDDED = 600
LARGE = BatchesConfig(lanes=64, seconds=200.0)
SMALL = BatchesConfig(lanes=2, seconds=16.0)
FEATURES = FeaturesConfig()


def encoder_frames(samples):
    return FEATURES.num_frames(samples) // 4


def write_index(folder: Path, count: int) -> None:
    """A split without audio: lengths of 0.5 s and more, 4.5 s in the mean; its shards are empty but for their size."""
    generator = np.random.default_rng(1)
    durations_s = generator.gamma(4.0, 1.0, count) + 0.5
    samples = (durations_s * RATE_HZ).astype(np.int64)
    shard = np.arange(count, dtype=np.int32) // UTTERANCES_PER_SHARD
    np.savez(
        folder / "index.npz",
        shard=shard,
        # Every utterance is one byte.
        offset=np.arange(count) % UTTERANCES_PER_SHARD,
        size=np.ones(count, np.int64),
        samples=samples,
        text_length=(samples // 1200).astype(np.int32),
    )

    shards = []
    for number, size in enumerate(np.bincount(shard).tolist()):
        name = f"shard-{number:06d}.tar"
        (folder / name).write_bytes(bytes(size))
        shards.append({"name": name, "utterances": size, "seconds": 600, "bytes": size, "sha256": f"{number:064x}"})
    summary = {"format": 1, "sample_rate_hz": RATE_HZ, "shards": shards, "rejected": []}
    (folder / "shards.json").write_text(json.dumps(summary))


def make_sampler(index: ShardIndex, tokens: np.ndarray, min_frames: np.ndarray, batches: BatchesConfig) -> BatchSampler:
    return BatchSampler(
        shard=index.shard,
        samples=index.samples,
        tokens=tokens,
        min_frames=min_frames,
        batches=batches,
        seed=1,
        sample_rate_hz=RATE_HZ,
        speeds=SPEEDS,
        encoder_frames=encoder_frames,
    )


def open_large(folder: Path, step: int) -> dict[str, float]:
    """Seconds to read the index, to open a sampler and to get a step's first micro-batch; peak memory in GB."""
    began = time.perf_counter()
    index = read_index(folder)
    index_s = time.perf_counter() - began

    began = time.perf_counter()
    sampler = make_sampler(index, index.text_length, index.text_length, LARGE)
    sampler_s = time.perf_counter() - began

    began = time.perf_counter()
    epoch, _ = sampler.position(step)
    sampler.micro_batch(step, 0)
    sampler.totals(step)
    return {
        "index_s": index_s,
        "sampler_s": sampler_s,
        "position_s": time.perf_counter() - began,
        "epoch": epoch,
        "steps_per_epoch": sampler.steps_per_epoch,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def write_embedded(folder: Path) -> None:
    """Utterances of the embedded corpus' training split, a tokenizer and its token counts."""
    selection = CORPORA["aelita"].select(AelitaConfig(), 1)
    train = [utterance for utterance in selection.utterances if utterance.split == "train"]
    write_split(
        train[:NUM_EMBEDDED],
        folder / "train",
        sample_rate_hz=RATE_HZ,
        shard_seconds=120,
        seed=1,
        workers=2,
    )
    index = read_index(folder / "train")
    tokenizer = train_tokenizer(index.transcripts(), TokenizerConfig(), folder / "tokenizer")
    token_counts(index, tokenizer, folder / "tokenizer" / "counts.npz")


def resume_small(folder: Path, step: int) -> dict[str, float]:
    """Seconds from nothing to the sampler, and from there to the first batches of a step, audio included."""
    began = time.perf_counter()
    index = read_index(folder / "train")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    tokens, min_frames = token_counts(index, tokenizer, folder / "tokenizer" / "counts.npz")
    sampler = make_sampler(index, tokens, min_frames, SMALL)
    sampler_s = time.perf_counter() - began

    began = time.perf_counter()
    loader = Loader(sampler, ShardReader(index), tokenizer, range(SMALL.lanes), workers=2)
    next(loader.steps(step, step + 100))
    return {"sampler_s": sampler_s, "first_batch_s": time.perf_counter() - began}


def in_own_process(measure: Callable[..., dict[str, float]], *arguments) -> dict[str, float]:
    """Run a measurement where nothing was opened before and the peak memory is the measurement's own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=10_000_000)
    count = parser.parse_args().utterances

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_index(folder, count)
        num_shards = math.ceil(count / UTTERANCES_PER_SHARD)
        print(f"{count:,} utterances, {num_shards:,} shards, {LARGE.lanes} lanes")
        for step in STEPS:
            figures = in_own_process(open_large, folder, step)
            print(
                f"step {step:>10,} (epoch {figures['epoch']:>4} of {figures['steps_per_epoch']:,} steps): "
                f"index {figures['index_s']:.1f} s, sampler {figures['sampler_s']:.1f} s, "
                f"first micro-batch {figures['position_s']:.1f} s, peak memory {figures['peak_gb']:.2f} GB"
            )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_embedded(folder)
        print(f"{NUM_EMBEDDED} utterances of the embedded corpus, {SMALL.lanes} lanes of {SMALL.seconds:.0f} s")
        for step in STEPS:
            figures = in_own_process(resume_small, folder, step)
            print(
                f"step {step:>10,}: index and sampler {figures['sampler_s']:.2f} s, "
                f"first batch, audio included, {figures['first_batch_s']:.2f} s"
            )


if __name__ == "__main__":
    main()
