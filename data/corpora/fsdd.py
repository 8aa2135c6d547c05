"""Strings of spoken digits, joined from real takes of the Free Spoken Digit Dataset.

The dataset is a few hundred takes of single English digits per speaker. Here each utterance is a seeded
string of them, all of one speaker and one split, with short silences between: an easy task with unlimited
variety that a small model learns in minutes. No take stands in two splits, and a held-out speaker is only
heard in `test_unseen`.

The dataset is not part of Chorus (its licence is CC BY-SA 4.0): clone it and name its folder as `root`.
Both its own layout (`recordings/{digit}_{speaker}_{take}.wav`) and a packed one (`index.jsonl` over one
long file per speaker) are read.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from data.audio import Clip, RejectedRow, Utterance
from data.corpora.corpus import BaseCorpusConfig, Corpus, Selection
from data.errors import DataError
from data.sampler import derive_seed

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SOURCE = "https://github.com/Jakobovski/free-spoken-digit-dataset"

Take = tuple[str, Clip]
"""A digit's word and its recording."""


class FsddConfig(BaseCorpusConfig, frozen=True, extra="forbid"):
    """Where the dataset lies, and how many strings of which shape are made of it."""

    name: Literal["fsdd"] = "fsdd"
    shard_seconds: float = Field(default=120.0, gt=0, description="audio per shard in seconds")
    root: Path = Field(description="the cloned dataset, or its recordings folder")
    train_strings: int = Field(default=2000, ge=1, description="strings in train; 2000 are about 1.5 hours")
    dev_strings: int = Field(default=200, ge=1, description="strings in dev")
    test_strings: int = Field(
        default=300, ge=1, description="strings in test and, with held-out speakers, in test_unseen"
    )
    min_digits: int = Field(default=3, ge=1, description="digits in the shortest string")
    max_digits: int = Field(default=7, ge=1, description="digits in the longest string")
    min_gap_s: float = Field(default=0.05, ge=0, description="shortest silence between two digits in seconds")
    max_gap_s: float = Field(default=0.25, ge=0, description="longest silence between two digits in seconds")
    held_out_speakers: tuple[str, ...] = Field(default=(), description="speakers that are heard in test_unseen only")

    @model_validator(mode="after")
    def _ordered(self) -> "FsddConfig":
        if self.min_digits > self.max_digits:
            raise ValueError(f"min_digits {self.min_digits} is above max_digits {self.max_digits}; swap them")
        if self.min_gap_s > self.max_gap_s:
            raise ValueError(f"min_gap_s {self.min_gap_s:g} is above max_gap_s {self.max_gap_s:g}; swap them")
        return self


def select(config: FsddConfig, seed: int) -> Selection:
    """Strings for train, dev, test and, with held-out speakers, test_unseen. Takes 0 to 4 are those of
    test, 5 to 9 those of dev, the others those of train. Raises DataError when there are no recordings at
    `root`, when a held-out speaker is not among them, or when a split is left without takes.
    """
    takes, rejected = _read_takes(config.root)
    speakers = {speaker for _, speaker in takes}
    held_out = set(config.held_out_speakers)
    if not held_out < speakers:
        raise DataError(
            f"held_out_speakers {sorted(held_out)} must be some, not all, of the speakers at {config.root}: "
            f"{', '.join(sorted(speakers))}."
        )
    known = sorted(speakers - held_out)
    parts = [
        ("train", "train", known, config.train_strings),
        ("dev", "dev", known, config.dev_strings),
        ("test", "test", known, config.test_strings),
    ]
    if held_out:
        parts.append(("test_unseen", "test", sorted(held_out), config.test_strings))
    utterances: list[Utterance] = []
    for split, source, heard, num_strings in parts:
        pools = {speaker: takes[source, speaker] for speaker in heard if (source, speaker) in takes}
        if not pools:
            raise DataError(f"No takes for {split} at {config.root}; clone the whole dataset: git clone {SOURCE}.")
        utterances.extend(_strings(split, pools, num_strings, config, derive_seed(seed, "fsdd", split)))
    return Selection(utterances, rejected)


CORPUS = Corpus(FsddConfig, select)


def _strings(
    split: str, pools: dict[str, list[Take]], num_strings: int, config: FsddConfig, seed: int
) -> Iterator[Utterance]:
    """Strings of one split, speakers in turn, so that each is heard equally often."""
    generator = np.random.default_rng(seed)
    speakers = sorted(pools)
    for number in range(num_strings):
        speaker = speakers[number % len(speakers)]
        pool = pools[speaker]
        num_digits = int(generator.integers(config.min_digits, config.max_digits + 1))
        chosen = [pool[position] for position in generator.integers(len(pool), size=num_digits)]
        gaps_s = generator.uniform(config.min_gap_s, config.max_gap_s, size=num_digits - 1).round(3)
        yield Utterance(
            f"{split}_{speaker}_{number:06d}",
            tuple(clip for _, clip in chosen),
            " ".join(word for word, _ in chosen),
            split,
            speaker=speaker,
            language="en",
            gaps_s=tuple(gaps_s.tolist()),
        )


def _read_takes(root: Path) -> tuple[dict[tuple[str, str], list[Take]], list[RejectedRow]]:
    """Takes by (split, speaker), in an order that does not depend on the file system."""
    rejected: list[RejectedRow] = []
    packed = root / "index.jsonl"
    folder = root / "recordings" if (root / "recordings").is_dir() else root
    found = _packed_takes(packed) if packed.is_file() else _single_takes(folder, rejected)
    takes: dict[tuple[str, str], list[Take]] = {}
    for split, speaker, take in found:
        takes.setdefault((split, speaker), []).append(take)
    if not takes:
        raise DataError(
            f"There are no recordings named like 7_jackson_32.wav at {folder}; "
            f"clone the dataset (git clone {SOURCE}) and set corpus.root to its folder."
        )
    return takes, rejected


def _single_takes(folder: Path, rejected: list[RejectedRow]) -> Iterator[tuple[str, str, Take]]:
    for path in sorted(folder.glob("*.wav")):
        match = re.fullmatch(r"(\d)_([A-Za-z0-9-]+)_(\d+)", path.stem)
        if match is None:
            rejected.append(RejectedRow(0, f"{path} is not named {{digit}}_{{speaker}}_{{take}}.wav"))
            continue
        digit, speaker, number = int(match[1]), match[2], int(match[3])
        split = "test" if number < 5 else "dev" if number < 10 else "train"
        yield split, speaker, (WORDS[digit], Clip(path))


def _packed_takes(index: Path) -> Iterator[tuple[str, str, Take]]:
    with index.open(encoding="utf-8") as file:
        for line, content in enumerate(file, 1):
            try:
                row = json.loads(content)
                clip = Clip(index.parent / row["file"], float(row["start"]), float(row["seconds"]))
                yield row["split"], row["speaker"].removeprefix("fsdd_"), (row["text"], clip)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{index}, line {line}: not a row of a packed dataset ({error!r}).") from error
