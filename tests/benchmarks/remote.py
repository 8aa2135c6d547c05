"""What a store's latency costs a training: `python -m tests.benchmarks.remote` (three minutes on two cores).

Shards of the embedded corpus in a folder, and behind a web server in a process of its own that answers each request
`--latency-ms` later. Each way of reading them is measured twice, one after the other in turns: how many utterances a
second it gives to whoever takes them at once, and which share of its time a trainer waits whose step takes `--step-s`.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from data.corpora import CORPORA
from data.corpora.aelita import AelitaConfig
from data.features import FeaturesConfig
from data.loader import Loader
from data.remote.settings import CACHE_VARIABLE, StorageConfig
from data.sampling.sampler import BatchesConfig, BatchSampler
from data.shards.index import ShardIndex, read_index
from data.shards.reader import ShardReader
from data.shards.writer import write_split
from tests.helpers.web_servers import serve_files

NUM_UTTERANCES = 600
BATCHES = BatchesConfig(lanes=2, seconds=16.0)
WORKERS = 2
ROUNDS = 2


def serve(folder: Path, latency_s: float, connection: Connection) -> None:
    with serve_files(folder) as files:
        files.delay_s = latency_s
        connection.send(files.url)
        connection.recv()


@contextmanager
def server(folder: Path, latency_s: float) -> Iterator[str]:
    """The URL of a server that lasts as long as the block, and does not share our interpreter."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, latency_s, there))
    process.start()
    try:
        yield here.recv()
    finally:
        here.send("end")
        process.join()


def make_sampler(index: ShardIndex) -> BatchSampler:
    nothing = np.zeros(len(index), np.int32)
    features = FeaturesConfig()
    return BatchSampler(
        index.shard,
        index.samples,
        nothing,
        nothing,
        BATCHES,
        1,
        index.sample_rate_hz,
        encoder_frames=lambda samples: features.num_frames(samples) // 4,
    )


def measure(place: str, storage: StorageConfig, connections: int, step_s: float) -> tuple[float, float]:
    """Utterances a second without a trainer, and the share of its time that a trainer waits after its first step."""
    index = read_index(place)
    sampler = make_sampler(index)

    def open_loader() -> Loader:
        reader = ShardReader(index, storage)
        return Loader(sampler, reader, None, range(BATCHES.lanes), WORKERS, connections=connections)

    began = time.perf_counter()
    loader = open_loader()
    for _ in loader.steps(0, sampler.steps_per_epoch):
        pass
    per_second = loader.utterances_seen / (time.perf_counter() - began)

    waited_s = 0.0
    num_steps = min(60, sampler.steps_per_epoch)
    steps = open_loader().steps(0, num_steps)
    next(steps)
    began = time.perf_counter()
    for _ in range(num_steps - 1):
        time.sleep(step_s)
        asked = time.perf_counter()
        next(steps)
        waited_s += time.perf_counter() - asked
    return per_second, waited_s / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--step-s", type=float, default=0.25)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chorus-remote-") as name:
        folder = Path(name)
        selection = CORPORA["aelita"].select(AelitaConfig(), 1)
        utterances = [utterance for utterance in selection.utterances if utterance.split == "train"][:NUM_UTTERANCES]
        write_split(utterances, folder / "train", sample_rate_hz=16000, shard_seconds=60, seed=1, workers=2)
        os.environ[CACHE_VARIABLE] = str(folder / "cache")
        with server(folder, arguments.latency_ms / 1000) as url:
            remote = f"{url}/train"
            no_cache = StorageConfig(cache_gb=0)
            cases: dict[str, tuple[str, StorageConfig, int]] = {
                "a folder": (str(folder / "train"), no_cache, 0),
                f"web server, {WORKERS} threads read and decode": (remote, no_cache, 0),
                "web server, 4 connections ahead": (remote, no_cache, 4),
                "web server, 16 connections ahead": (remote, no_cache, 16),
                "web server, second epoch, from the cache": (remote, StorageConfig(), 16),
            }
            # Fills the cache.
            measure(remote, StorageConfig(), 16, 0.0)
            results: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
            for _ in range(ROUNDS):
                for case, (place, storage, connections) in cases.items():
                    results[case].append(measure(place, storage, connections, arguments.step_s))

    print(f"{arguments.latency_ms:g} ms added to each request, a step of {arguments.step_s:g} s\n")
    print("| read from | utterances/s | waiting |\n|---|---:|---:|")
    for case, rounds in results.items():
        per_second = max(round_[0] for round_ in rounds)
        waiting = min(round_[1] for round_ in rounds)
        print(f"| {case} | {per_second:.0f} | {waiting:.1%} |")


if __name__ == "__main__":
    main()
