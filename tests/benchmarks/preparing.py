"""What preparing costs beside decoding: `python -m tests.benchmarks.preparing [--utterances N] [--rounds N]`.

Utterances of the embedded corpus in the forms that public corpora have. Of each form, in turns: shards by one worker,
and a bare loop that decodes, resamples and encodes the same as FLAC, and keeps nothing. Figures are of CPU time.
"""

import argparse
import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from data.audio import Clip, Utterance, read_audio
from data.corpora import CORPORA
from data.corpora.aelita import AelitaConfig
from data.shards.writer import write_split
from tests.benchmarks.reading import costs_in_turns

RATE_HZ = 16000
SHARD_SECONDS = 300.0
# Name, ending, rate, and what libsndfile calls it.
FORMS = (
    ("FLAC, as LibriSpeech", "flac", 16000, {"format": "FLAC"}),
    ("WAV, as AISHELL-1", "wav", 16000, {"format": "WAV", "subtype": "PCM_16"}),
    ("MP3 of 48 kHz, as Common Voice", "mp3", 48000, {"format": "MP3"}),
    ("Opus, as MLS", "opus", 16000, {"format": "OGG", "subtype": "OPUS"}),
)
LONG = "segments of one long Opus, as GigaSpeech"


def write_form(
    waveforms: list[np.ndarray],
    utterances: list[Utterance],
    folder: Path,
    rate_hz: int,
    ending: str,
    form: dict[str, Any],
) -> list[Utterance]:
    """The utterances with recordings in one form."""
    written: list[Utterance] = []
    for number, (utterance, waveform) in enumerate(zip(utterances, waveforms, strict=True)):
        path = folder / f"{number}.{ending}"
        soundfile.write(path, soxr.resample(waveform, RATE_HZ, rate_hz), rate_hz, **form)
        written.append(replace(utterance, clips=(Clip(path),)))
    return written


def write_long(waveforms: list[np.ndarray], utterances: list[Utterance], path: Path) -> list[Utterance]:
    """The utterances as segments of one recording."""
    soundfile.write(path, np.concatenate(waveforms), RATE_HZ, format="OGG", subtype="OPUS")
    segments: list[Utterance] = []
    start_s = 0.0
    for utterance, waveform in zip(utterances, waveforms, strict=True):
        seconds = len(waveform) / RATE_HZ
        segments.append(replace(utterance, clips=(Clip(path, start_s, seconds),)))
        start_s += seconds
    return segments


def prepare_shards(utterances: list[Utterance]) -> None:
    with tempfile.TemporaryDirectory(prefix="chorus-preparing-") as name:
        write_split(utterances, Path(name) / "train", sample_rate_hz=RATE_HZ, shard_seconds=SHARD_SECONDS, seed=1)


def code_again(utterances: list[Utterance]) -> None:
    for utterance in utterances:
        (clip,) = utterance.clips
        with soundfile.SoundFile(clip.path) as file:
            num_samples = -1
            if clip.seconds is not None:
                file.seek(round(clip.start_s * file.samplerate))
                num_samples = round(clip.seconds * file.samplerate)
            waveform = file.read(num_samples, dtype="float32")
            waveform = soxr.resample(waveform, file.samplerate, RATE_HZ)
        soundfile.write(io.BytesIO(), waveform, RATE_HZ, format="FLAC", subtype="PCM_16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    utterances = CORPORA["aelita"].select(AelitaConfig(), 1).utterances[: arguments.utterances]
    waveforms = [read_audio(utterance, RATE_HZ) for utterance in utterances]
    hours = sum(map(len, waveforms)) / RATE_HZ / 3600
    with tempfile.TemporaryDirectory(prefix="chorus-preparing-") as name:
        forms: dict[str, list[Utterance]] = {}
        for title, ending, rate_hz, form in FORMS:
            forms[title] = write_form(waveforms, utterances, Path(name), rate_hz, ending, form)
        forms[LONG] = write_long(waveforms, utterances, Path(name) / "long.opus")
        print(f"{len(utterances)} utterances, {hours:.2f} h, one worker, {arguments.rounds} rounds in turns\n")
        print("| | hours per minute and core | decoding and encoding alone | ratio |\n|---|---:|---:|---:|")
        for title, given in forms.items():
            variants: dict[str, Callable[[], object]] = {
                "shards": partial(prepare_shards, given),
                "bare": partial(code_again, given),
            }
            costs = costs_in_turns(variants, arguments.rounds)
            shards = hours / (costs["shards"].cpu_s / 60)
            bare = hours / (costs["bare"].cpu_s / 60)
            print(f"| {title} | {shards:.1f} | {bare:.1f} | {shards / bare:.2f} |", flush=True)


if __name__ == "__main__":
    main()
