"""Strings of spoken digits, joined from real takes of the Free Spoken Digit Dataset.

The dataset is a few hundred takes of single English digits per speaker. Here each utterance is a seeded
string of them, all of one speaker and one split, with short silences between: an easy task with unlimited
variety that a small model learns in minutes. No take is in two splits, and a held-out speaker is in
`test_unseen` only.

The dataset is not part of Chorus (its licence is CC BY-SA 4.0): clone it and name its folder as `root`.
Both its own layout (`recordings/{digit}_{speaker}_{take}.wav`) and a packed one (`index.jsonl` over one
long file per speaker) are read.
"""

import re
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from data.audio import Clip, RejectedRow, Utterance
from data.corpora.corpus import BaseCorpusConfig, Corpus, Selection
from data.errors import DataError
from data.manifests.rows import read_rows
from data.rejected_rows import RejectedRows
from data.seeds import derive_seed

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SOURCE = "https://github.com/Jakobovski/free-spoken-digit-dataset"

# Takes below the first number are those of test, from there up to the second those of dev, the others those of train.
FIRST_DEV_TAKE = 5
FIRST_TRAIN_TAKE = 10


class Take(NamedTuple):
    """One recording of one digit."""

    split: str
    speaker: str
    word: str
    clip: Clip


class FsddConfig(BaseCorpusConfig, frozen=True, extra="forbid"):
    """Where the dataset lies, and how many strings of which shape are made of it."""

    name: Literal["fsdd"] = "fsdd"
    shard_seconds: float = Field(default=120.0, gt=0, le=1e6, description="audio per shard in seconds")
    root: Path = Field(description="the cloned dataset, or its recordings folder")
    train_strings: int = Field(default=2000, ge=1, le=10**7, description="strings in train; 2000 are about 1.5 hours")
    dev_strings: int = Field(default=200, ge=1, le=10**7, description="strings in dev")
    test_strings: int = Field(
        default=300, ge=1, le=10**7, description="strings in test and, with held-out speakers, in test_unseen"
    )
    min_digits: int = Field(default=3, ge=1, le=1000, description="digits in the shortest string")
    max_digits: int = Field(default=7, ge=1, le=1000, description="digits in the longest string")
    min_gap_s: float = Field(default=0.05, ge=0, le=60, description="shortest silence between two digits in seconds")
    max_gap_s: float = Field(default=0.25, ge=0, le=60, description="longest silence between two digits in seconds")
    held_out_speakers: tuple[str, ...] = Field(default=(), description="speakers that are in test_unseen only")

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
    rejected = RejectedRows()
    folder = config.root / "recordings"
    if not folder.is_dir():
        folder = config.root
    index = config.root / "index.jsonl"
    if index.is_file():
        takes = _packed_takes(index, rejected)
    else:
        takes = _single_takes(folder, rejected)
    if not takes:
        raise DataError(
            f"There are no recordings named like 7_jackson_32.wav at {folder}; "
            f"clone the dataset (git clone {SOURCE}) and set corpus.root to its folder."
        )

    speakers = {take.speaker for take in takes}
    held_out = set(config.held_out_speakers)
    if not held_out < speakers:
        raise DataError(
            f"held_out_speakers {sorted(held_out)} must be some, not all, of the speakers at {config.root}: "
            f"{', '.join(sorted(speakers))}."
        )

    num_strings = {"train": config.train_strings, "dev": config.dev_strings, "test": config.test_strings}
    takes_of_split: dict[str, list[Take]] = {split: [] for split in num_strings}
    unseen: list[Take] = []
    for take in takes:
        if take.speaker not in held_out:
            takes_of_split.setdefault(take.split, []).append(take)
        elif take.split == "test":
            unseen.append(take)

    utterances: list[Utterance] = []
    for split, number in num_strings.items():
        utterances += _strings(split, takes_of_split[split], number, config, seed)
    if held_out:
        utterances += _strings("test_unseen", unseen, config.test_strings, config, seed)
    return Selection(utterances, rejected)


CORPUS = Corpus(FsddConfig, select)


def _strings(split: str, takes: list[Take], num_strings: int, config: FsddConfig, seed: int) -> list[Utterance]:
    """Strings of one split, speakers in turn, so that each speaks equally often."""
    pools: dict[str, list[Take]] = {}
    for take in takes:
        pools.setdefault(take.speaker, []).append(take)
    if not pools:
        raise DataError(f"No takes for {split} at {config.root}; clone the whole dataset: git clone {SOURCE}.")

    generator = np.random.default_rng(derive_seed(seed, "fsdd", split))
    speakers = sorted(pools)
    utterances: list[Utterance] = []
    for number in range(num_strings):
        speaker = speakers[number % len(speakers)]
        pool = pools[speaker]
        num_digits = int(generator.integers(config.min_digits, config.max_digits + 1))
        digits = [pool[position] for position in generator.integers(len(pool), size=num_digits)]
        gaps_s = generator.uniform(config.min_gap_s, config.max_gap_s, size=num_digits - 1).round(3)
        utterances.append(
            Utterance(
                key=f"{split}_{speaker}_{number:06d}",
                clips=tuple(digit.clip for digit in digits),
                text=" ".join(digit.word for digit in digits),
                split=split,
                speaker=speaker,
                language="en",
                gaps_s=tuple(gaps_s.tolist()),
            )
        )
    return utterances


def _single_takes(folder: Path, rejected: RejectedRows) -> list[Take]:
    """The takes of a folder with one file each; files with other names are added to `rejected`."""
    # Sorted, so that the order does not depend on the file system.
    takes: list[Take] = []
    for path in sorted(folder.glob("*.wav")):
        match = re.fullmatch(r"(\d)_([A-Za-z0-9-]+)_(\d+)", path.stem)
        if match is None:
            rejected.append(RejectedRow(0, f"{path} is not named {{digit}}_{{speaker}}_{{take}}.wav"))
            continue

        # The dataset's own division: its takes 0 to 4 are for testing.
        number = int(match[3])
        split = "train"
        if number < FIRST_DEV_TAKE:
            split = "test"
        elif number < FIRST_TRAIN_TAKE:
            split = "dev"
        word = WORDS[int(match[1])]
        takes.append(Take(split=split, speaker=match[2], word=word, clip=Clip(path)))
    return takes


def _packed_takes(index: Path, rejected: RejectedRows) -> list[Take]:
    """The takes of a packed dataset: rows of an index over one long file per speaker; others go to `rejected`."""
    takes: list[Take] = []
    for row in read_rows(index, ()):
        if isinstance(row.content, str):
            rejected.append(RejectedRow(row.line, row.content))
            continue
        try:
            clip = Clip(
                path=index.parent / row.content["file"],
                start_s=float(row.content["start"]),
                seconds=float(row.content["seconds"]),
            )
            take = Take(
                split=row.content["split"],
                speaker=row.content["speaker"].removeprefix("fsdd_"),
                word=row.content["text"],
                clip=clip,
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            rejected.append(RejectedRow(row.line, f"not a row of a packed dataset ({type(error).__name__}: {error})"))
        else:
            takes.append(take)
    return takes
