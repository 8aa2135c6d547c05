"""Recordings of corpora that tests make themselves: noise, in any format that libsndfile writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from data.audio import Utterance
from data.corpora import Selection
from data.shards.writer import read_index

RATE_HZ = 16000


def write_noise(path: Path, seconds: float = 0.2, *, rate_hz: int = RATE_HZ, **formats: str) -> None:
    """Write a recording, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name decides, so that no two recordings of a test sound alike.
    generator = np.random.default_rng(list(path.name.encode()))
    samples = generator.uniform(-0.5, 0.5, round(seconds * rate_hz))
    soundfile.write(path, samples, rate_hz, **formats)


def write_text(path: Path, *lines: str) -> None:
    """Write a text file, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def texts(selection: Selection, split: str) -> dict[str, str]:
    """The texts of a split by their keys."""
    return {utterance.key: utterance.text for utterance in of_split(selection, split)}


def of_split(selection: Selection, split: str) -> list[Utterance]:
    """The utterances of a split."""
    return [utterance for utterance in selection.utterances if utterance.split == split]


def reasons(selection: Selection) -> dict[str, str]:
    """Why rows were rejected, by their keys."""
    return {row.key: row.reason for row in selection.rejected}


def samples_by_key(folder: Path) -> dict[str, int]:
    """The number of samples of each utterance of a split that was written."""
    index = read_index(folder)
    keys = []
    for line in (folder / "transcripts.jsonl").read_text(encoding="utf-8").splitlines():
        keys.append(json.loads(line)["key"])
    return dict(zip(keys, index.samples.tolist(), strict=True))


def summary(folder: Path) -> dict[str, Any]:
    """What a split says of itself."""
    return json.loads((folder / "shards.json").read_text(encoding="utf-8"))
