"""Sets of shards made of noise and tones, for tests of what is done with whole sets."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from data.audio import Clip, Utterance
from data.shards.writer import write_split

RATE_HZ = 8000


@dataclass
class Said:
    """One utterance to be written; without a waveform it is noise of its own, as long as its text takes to say."""

    key: str
    text: str = "one two three"
    speaker: str = ""
    language: str = "xx"
    waveform: np.ndarray | None = None

    def samples(self) -> np.ndarray:
        if self.waveform is not None:
            return self.waveform
        return speech(0.1 * max(1, len(self.text)), zlib.crc32(self.key.encode()))


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise that is loud enough to be speech and different for every seed."""
    return 0.1 * np.random.default_rng(seed).standard_normal(round(RATE_HZ * seconds))


def write_set(folder: Path, utterances: list[Said], text_rules: dict | None = None, **shape) -> Path:
    """Write a split at `folder`, whose name is that of the split; returns it."""
    recordings = folder.parent / f"recordings-{folder.name}"
    recordings.mkdir(parents=True, exist_ok=True)
    rows = []
    for said in utterances:
        path = recordings / f"{said.key}.wav"
        soundfile.write(path, said.samples(), RATE_HZ, subtype="PCM_16")
        rows.append(Utterance(said.key, (Clip(path),), said.text, folder.name, said.speaker, said.language))
    shape = {"sample_rate_hz": RATE_HZ, "shard_seconds": 12.0, "seed": 1} | shape
    write_split(rows, folder, text_rules=text_rules, **shape)
    return folder


def some_speech(count: int = 30, prefix: str = "u") -> list[Said]:
    """Utterances of several speakers, each of its own sentence."""
    said = []
    for number in range(count):
        text = "abcde fghij " * (1 + number % 3) + "klmno"[: 1 + number % 5] + "ab" * (number // 15)
        said.append(Said(f"{prefix}{number:03d}", f"{text} {_spell(number)}", f"{prefix}-s{number % 4}"))
    return said


def _spell(number: int) -> str:
    return "".join("abcdefghij"[int(digit)] for digit in str(number))
