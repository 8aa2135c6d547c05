"""What augmentation costs: `python -m tests.benchmarks.augmentation [--shards DIR] [--steps N]`.

Utterances per second of one thread for each kind, and the share of a training step that is spent waiting for data in
the first stage of the recipe `digits`, without augmentation and with every kind at its default probability. Speech is
that of shards of the digits (`chorus prepare fsdd`), or phrases of the embedded corpus; noise is made here.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from data.augmentation import AugmentConfig, ShardSet, WaveformAugmentation
from data.augmentation.config import WAVEFORM_KINDS
from data.corpora import CORPORA
from data.corpora.aelita import AelitaConfig
from data.shards.index import read_index
from data.shards.reader import ShardReader
from data.shards.writer import write_split
from launcher.cli import main as chorus
from launcher.run_folder import RunFolder
from launcher.tracking import read_metrics

RATE_HZ = 16_000
NUM_NOISES = 20
# The first rows have the first batch in them, which nothing was read ahead of.
ROWS_LEFT_OUT = 2
CODECS: dict[str, dict[str, Any]] = {
    "codec: mu-law": {"kinds": ["mu_law"]},
    "codec: G.722": {"kinds": ["g722"]},
    "codec: MP3, 32 kbit/s": {"kinds": ["mp3"], "mp3_kbps": [32, 32]},
    "codec: Opus, 16 kbit/s": {"kinds": ["opus"], "opus_kbps": [16, 16]},
}


def write_noises(folder: Path) -> None:
    """Half a minute each of noise that falls by 3 dB per octave, as that of streets and fans about does."""
    folder.mkdir()
    num_samples = 30 * RATE_HZ
    for number in range(NUM_NOISES):
        spectrum = np.fft.rfft(np.random.default_rng(number).standard_normal(num_samples))
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 100))
        noise = np.fft.irfft(spectrum, num_samples)
        soundfile.write(folder / f"{number:02d}.flac", 0.3 * noise / np.abs(noise).max(), RATE_HZ)


def write_phrases(folder: Path) -> None:
    """Phrases of the embedded corpus as shards."""
    selected = CORPORA["aelita"].select(AelitaConfig(cuts=("phrases",)), 1).utterances
    for split in ("train", "dev"):
        chosen = [utterance for utterance in selected if utterance.split == split][:600]
        write_split(chosen, folder / split, sample_rate_hz=RATE_HZ, shard_seconds=120, seed=1)


def all_kinds(noises: Path) -> dict[str, Any]:
    """Every kind with its defaults; volume, which is one multiplication, with all utterances."""
    values: dict[str, Any] = {kind: {} for kind in WAVEFORM_KINDS}
    values["noise"]["recordings"] = str(noises)
    return values


def settings_of_kinds(noises: Path) -> dict[str, dict[str, Any]]:
    """The augmentation that is timed, by the name of its row."""
    settings: dict[str, dict[str, Any]] = {}
    for kind, section in all_kinds(noises).items():
        if kind != "codec":
            settings[kind] = {kind: {**section, "probability": 1.0}}
    for name, section in CODECS.items():
        settings[name] = {"codec": {**section, "probability": 1.0}}
    settings["all, at their default probabilities"] = all_kinds(noises)
    return settings


def time_kinds(shards: Path, noises: Path, num_utterances: int) -> None:
    reader = ShardReader(read_index(shards / "train"))
    utterances = ShardSet(reader, len(reader.index))
    waveforms = [reader.read(number).waveform for number in range(min(num_utterances, len(utterances)))]
    seconds = sum(len(waveform) for waveform in waveforms) / RATE_HZ
    print(f"{len(waveforms)} utterances of {seconds / len(waveforms):.2f} s in the mean, one thread\n")
    print("| | utterances per s | s of audio per s |\n|---|---:|---:|")
    for name, values in settings_of_kinds(noises).items():
        config = AugmentConfig.model_validate(values)
        augmentation = WaveformAugmentation(config, RATE_HZ, 1, utterances)
        # Rooms are simulated when they are first drawn, once in a run.
        if config.reverberation is not None:
            for room in range(config.reverberation.rooms):
                augmentation._simulated_response(room, config.reverberation)
        rounds: list[float] = []
        for number in range(3):
            # Of the thread: what else the machine does is not counted.
            started = time.thread_time()
            for position, waveform in enumerate(waveforms):
                augmentation.apply(waveform, number, str(position))
            rounds.append(time.thread_time() - started)
        took_s = statistics.median(rounds)
        print(f"| {name} | {len(waveforms) / took_s:.0f} | {seconds / took_s:.0f} |", flush=True)


def measure_waiting(shards: Path, noises: Path, folder: Path, steps: int) -> None:
    print(f"\n`digits`, teacher, two processes, {steps} steps\n")
    print("| augmentation | ms per step | waiting for data |\n|---|---:|---:|")
    augmentations = {"speeds and masks alone": {}, "all kinds": {**all_kinds(noises), "time_warp": {}}}
    for name, values in augmentations.items():
        run = folder / name.replace(" ", "-")
        options = [f"--set=augment.{kind}={section}" for kind, section in values.items()]
        status = chorus(
            [
                *("run", "digits", "--run-dir", str(run), "--set", f"corpus={{name: shards, shards: '{shards}'}}"),
                *("--set", "stages.student=null", "--set", "stages.evaluation=null"),
                *("--set", f"stages.teacher.steps={steps}", "--set", f"stages.teacher.validate_every={steps}"),
                *("--set", "cluster.expert_parallel=1", "--set", "cluster.deepspeed=zero1", *options),
            ]
        )
        assert status == 0, f"chorus run ended with {status}"
        metrics = read_metrics(RunFolder(run).stage("teacher").path / "metrics.jsonl")
        rows = [row for row in metrics if "data_wait" in row][ROWS_LEFT_OUT:]
        step_s = sum(row["step_s"] for row in rows)
        waiting_s = sum(row["step_s"] * row["data_wait"] for row in rows)
        print(f"| {name} | {1000 * step_s / len(rows):.0f} | {waiting_s / step_s:.2%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, help="a prepared corpus, instead of phrases of the embedded one")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--utterances", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_noises(folder / "noises")
        shards = arguments.shards
        if shards is None:
            shards = folder / "shards"
            write_phrases(shards)
        time_kinds(shards, folder / "noises", arguments.utterances)
        measure_waiting(shards, folder / "noises", folder, arguments.steps)


if __name__ == "__main__":
    main()
