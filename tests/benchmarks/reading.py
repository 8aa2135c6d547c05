"""What reading costs beside other tools: `python -m tests.benchmarks.reading [--utterances N] [--rounds N]`.

Utterances of the embedded corpus, as shards and, with the same audio, as lhotse's Shar. Each reader takes all of them
in one thread, in turns with the others, with decoding and without; then each front-end decodes and computes 80 log-mel
bins. Figures are of the CPU time of the process and of wall time, so that other work on the machine is seen. Needs the
extra `test` (lhotse, kaldi-native-fbank).
"""

import argparse
import io
import json
import multiprocessing
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import kaldi_native_fbank
import lhotse
import numpy as np
import soundfile
import torch
import torchaudio
from webdataset.compat import WebDataset

from data.corpora import CORPORA
from data.corpora.aelita import AelitaConfig
from data.features import FeaturesConfig, LogMel
from data.loader import Loader
from data.sampling.sampler import BatchesConfig, BatchSampler
from data.shards.index import read_index
from data.shards.reader import ShardReader
from data.shards.writer import write_split

RATE_HZ = 16000
SHARD_SECONDS = 300.0
BATCHES = BatchesConfig(lanes=2, seconds=60.0)
SHAR_UTTERANCES = 50
# 0 reads in the caller, one step at a time.
THREADS = (0, 1, 2, 4, 8)


class Cost(NamedTuple):
    """Medians over the rounds, in seconds."""

    cpu_s: float
    wall_s: float


def costs_in_turns(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, Cost]:
    """What each variant costs, after a round that does not count: files are then in the page cache for all."""
    measured: dict[str, list[Cost]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            wall = time.perf_counter()
            cpu = time.process_time()
            run()
            cost = Cost(time.process_time() - cpu, time.perf_counter() - wall)
            if number:
                measured[name].append(cost)
    medians: dict[str, Cost] = {}
    for name, costs in measured.items():
        cpu_s = statistics.median(cost.cpu_s for cost in costs)
        wall_s = statistics.median(cost.wall_s for cost in costs)
        medians[name] = Cost(cpu_s, wall_s)
    return medians


def decode(flac: bytes) -> np.ndarray:
    """Samples as each reader gets them: float32, by libsndfile."""
    return soundfile.read(io.BytesIO(flac), dtype="float32")[0]


def members_of_tars(shards: list[Path]) -> Iterator[tuple[str, bytes]]:
    """The bare loop: each member of each tar, whatever it is."""
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                yield member.name, file.read()


def decode_bare(shards: list[Path]) -> None:
    for name, content in members_of_tars(shards):
        if name.endswith(".flac"):
            decode(content)
        else:
            json.loads(content)


def web_dataset(shards: list[Path]) -> WebDataset:
    return WebDataset([str(shard) for shard in shards], shardshuffle=False)


def decode_flac(key: str, content: bytes) -> np.ndarray | None:
    """webdataset's own decoder of audio needs a library that torchaudio no longer has."""
    if key.endswith("flac"):
        return decode(content)
    return None


def exhaust(values: Iterable[object]) -> None:
    for _ in values:
        pass


def write_shar(reader: ShardReader, folder: Path) -> None:
    """The utterances of a split as lhotse's Shar, in FLAC."""
    cuts: list[lhotse.MonoCut] = []
    for number in range(len(reader.index)):
        example = reader.read(number)
        encoded = reader.fetch(number).flac
        recording = lhotse.Recording.from_bytes(encoded, example.key)
        supervision = lhotse.SupervisionSegment(example.key, example.key, 0.0, recording.duration, text=example.text)
        cuts.append(lhotse.MonoCut(example.key, 0.0, recording.duration, 0, [supervision], recording=recording))
    folder.mkdir()
    lhotse.CutSet.from_cuts(cuts).to_shar(folder, fields={"recording": "flac"}, shard_size=SHAR_UTTERANCES)


def compare_readers(train: Path, shar: Path, rounds: int) -> None:
    reader = ShardReader(read_index(train))
    index = reader.index
    shards = sorted(train.glob("*.tar"))
    megabytes = sum(shard.stat().st_size for shard in shards) / 1e6
    in_order = range(len(index))
    shuffled = np.random.default_rng(1).permutation(len(index)).tolist()
    print(f"{len(index)} utterances, {megabytes:.0f} MB in {len(shards)} shards, one thread, {rounds} rounds\n")

    def shar_cuts() -> Iterable[lhotse.MonoCut]:
        return lhotse.CutSet.from_shar(in_dir=shar)

    comparisons: dict[str, dict[str, Callable[[], object]]] = {
        "not decoded": {
            "tarfile": lambda: exhaust(members_of_tars(shards)),
            "webdataset": lambda: exhaust(web_dataset(shards)),
            "lhotse Shar": lambda: exhaust(shar_cuts()),
            "Chorus, in the order of the shards": lambda: exhaust(map(reader.fetch, in_order)),
            "Chorus, shuffled": lambda: exhaust(map(reader.fetch, shuffled)),
        },
        "decoded": {
            "tarfile": lambda: decode_bare(shards),
            "webdataset": lambda: exhaust(web_dataset(shards).decode(decode_flac)),
            "lhotse Shar": lambda: exhaust(cut.load_audio() for cut in shar_cuts()),
            "Chorus, in the order of the shards": lambda: exhaust(map(reader.read, in_order)),
            "Chorus, shuffled": lambda: exhaust(map(reader.read, shuffled)),
        },
    }
    print("| | | utterances per CPU s | MB per CPU s | over tarfile | utterances per wall s |")
    print("|---|---|---:|---:|---:|---:|")
    for what, variants in comparisons.items():
        costs = costs_in_turns(variants, rounds)
        for name, cost in costs.items():
            ratio = costs["tarfile"].cpu_s / cost.cpu_s
            print(
                f"| {what} | {name} | {len(index) / cost.cpu_s:,.0f} | {megabytes / cost.cpu_s:,.0f} | {ratio:.2f} | "
                f"{len(index) / cost.wall_s:,.0f} |",
                flush=True,
            )


def torchaudio_fbank(waveform: np.ndarray) -> torch.Tensor:
    samples = torch.from_numpy(waveform)[None]
    return torchaudio.compliance.kaldi.fbank(samples, num_mel_bins=80, dither=0.0, sample_frequency=RATE_HZ)


def kaldi_native(waveform: np.ndarray) -> np.ndarray:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = RATE_HZ
    options.mel_opts.num_bins = 80
    fbank = kaldi_native_fbank.OnlineFbank(options)
    # It takes arrays, which its annotations do not say; lists would be slower.
    fbank.accept_waveform(RATE_HZ, waveform)  # pyright: ignore[reportArgumentType]
    fbank.input_finished()
    return np.stack([fbank.get_frame(frame) for frame in range(fbank.num_frames_ready)])


def compare_front_ends(train: Path, rounds: int) -> None:
    reader = ShardReader(read_index(train))
    numbers = range(len(reader.index))
    flacs = [reader.fetch(number).flac for number in numbers]
    seconds = float(reader.index.samples.sum()) / RATE_HZ
    log_mel = LogMel(FeaturesConfig())
    kaldi = LogMel(FeaturesConfig(kind="kaldi"))

    def ours(front_end: LogMel) -> None:
        for number in numbers:
            waveform = torch.from_numpy(reader.read(number).waveform)
            front_end(waveform[None], torch.tensor([len(waveform)]))

    variants: dict[str, Callable[[], object]] = {
        "soundfile, torchaudio's Kaldi fbank": lambda: exhaust(torchaudio_fbank(decode(flac)) for flac in flacs),
        "soundfile, kaldi-native-fbank": lambda: exhaust(kaldi_native(decode(flac)) for flac in flacs),
        "Chorus, `kind: kaldi`": lambda: ours(kaldi),
        "Chorus, `kind: log_mel`": lambda: ours(log_mel),
    }
    print("\n| decoding and features | s of audio per CPU s | over torchaudio |\n|---|---:|---:|")
    costs = costs_in_turns(variants, rounds)
    for name, cost in costs.items():
        ratio = next(iter(costs.values())).cpu_s / cost.cpu_s
        print(f"| {name} | {seconds / cost.cpu_s:,.0f} | {ratio:.2f} |", flush=True)


def peak_kb() -> int:
    """The most memory that the process had at once, since that was last set back."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1])


def loader_memory(train: Path, threads: int) -> float:
    """MB by which a process grows at most while a loader with so many threads reads a hundred steps."""
    index = read_index(train)
    nothing = np.zeros(len(index), np.int32)
    features = FeaturesConfig()
    sampler = BatchSampler(
        index.shard,
        index.samples,
        nothing,
        nothing,
        BATCHES,
        1,
        index.sample_rate_hz,
        encoder_frames=lambda samples: features.num_frames(samples) // 4,
    )
    loader = Loader(sampler, ShardReader(index), None, range(BATCHES.lanes), threads)
    # Imports had a peak of their own: Linux begins a new one.
    Path("/proc/self/clear_refs").write_text("5")
    before_kb = peak_kb()
    exhaust(loader.steps(0, 100))
    return (peak_kb() - before_kb) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="chorus-reading-") as name:
        folder = Path(name)
        selection = CORPORA["aelita"].select(AelitaConfig(), 1)
        utterances = [utterance for utterance in selection.utterances if utterance.split == "train"]
        chosen = utterances[: arguments.utterances]
        cpu = time.process_time()
        report = write_split(chosen, folder / "train", sample_rate_hz=RATE_HZ, shard_seconds=SHARD_SECONDS, seed=1)
        cpu_s = time.process_time() - cpu
        hours = report.seconds / 3600
        print(f"prepared {hours:.2f} h in {cpu_s:.1f} CPU s: {hours / (cpu_s / 60):.1f} h per minute and core\n")

        write_shar(ShardReader(read_index(folder / "train")), folder / "shar")
        compare_readers(folder / "train", folder / "shar", arguments.rounds)
        compare_front_ends(folder / "train", arguments.rounds)

        print(f"\n| threads | MB of a loader, {BATCHES.lanes} lanes of {BATCHES.seconds:g} s |\n|---:|---:|")
        for threads in THREADS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                grown_mb = pool.apply(loader_memory, (folder / "train", threads))
            print(f"| {threads} | {grown_mb:.0f} |", flush=True)


if __name__ == "__main__":
    main()
