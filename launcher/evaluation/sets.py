"""What is recognised: a split of shards, in a folder or behind a URL, or the rows of a manifest.

Both give the same: what each utterance is, without decoding anything, and its recording by its position. What cannot be
used is named: rows that a manifest holds and that are none (`rejected`), and recordings that cannot be read, when they
are.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import soxr

from data.audio import read_audio
from data.errors import DataError
from data.manifests.manifest import read_manifest
from data.remote.settings import StorageConfig
from data.shards.index import SUMMARY, find_splits, is_url, read_index
from data.shards.reader import ShardReader

Waveform: TypeAlias = npt.NDArray[np.float32]

# Where shards have several splits and none is asked for.
DEFAULT_SPLIT = "test"
# Rejected rows that results name one by one; the others are counted.
MAX_NAMED_REJECTED = 10_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a set lies: plain values, from which another process opens the same. `split` is empty for all rows."""

    label: str
    path: str
    split: str
    is_manifest: bool


@dataclass(frozen=True)
class Entry:
    """What is known of an utterance before its recording is read; `seconds` is 0 where that is not known."""

    key: str
    text: str
    speaker: str
    language: str
    seconds: float


@dataclass(frozen=True)
class Rejected:
    """An utterance that cannot be used, and why."""

    corpus: str
    key: str
    reason: str


class EvaluationSet(Protocol):
    """The utterances of one place; those without a transcript are in `entries` too, with an empty text."""

    place: Place
    entries: list[Entry]
    num_rejected: int
    rejected: list[Rejected]

    def read(self, position: int, sample_rate_hz: int) -> Waveform:
        """The recording of an utterance, float32 [S]. DataError when it cannot be read."""
        ...


def find_places(paths: list[str], split: str | None) -> list[Place]:
    """The places that a user names. DataError where there is nothing that can be evaluated, or no such split."""
    places: list[Place] = []
    for path in paths:
        place = _find_place(path, split)
        if place in places:
            raise DataError(f"{place.path} is named twice. Name each set once.")
        places.append(place)
    labels = [place.label for place in places]
    # Two splits may have the same name.
    for number, place in enumerate(places):
        if labels.count(place.label) > 1:
            places[number] = replace(place, label=place.path)
    return places


def _find_place(name: str, split: str | None) -> Place:
    if is_url(name):
        url = name.rstrip("/")
        if split is not None:
            url = f"{url}/{split}"
        return Place(url.rpartition("/")[2], url, "", is_manifest=False)
    path = Path(name).expanduser()
    if (path / SUMMARY).is_file():
        if split not in (None, path.name):
            raise DataError(f"{path} is itself a split of shards, and --split asks for {split}. Leave --split out.")
        return Place(path.name, str(path), "", is_manifest=False)
    # Folders whose name begins with a dot are splits that are still being written.
    if any(path.glob(f"[!.]*/{SUMMARY}")):
        splits = find_splits(path)
        wanted = split or DEFAULT_SPLIT
        if wanted not in splits:
            raise DataError(
                f"The shards at {path} have no split {wanted}; there are {', '.join(splits)}. Name one with --split."
            )
        return Place(path.name, str(splits[wanted]), "", is_manifest=False)
    if not path.exists():
        raise DataError(f"There is no {path}. Name a folder of shards, or a manifest.")
    return Place(path.stem or str(path), str(path), split or "", is_manifest=True)


def open_set(place: Place, storage: StorageConfig | None = None) -> EvaluationSet:
    """The set at a place. DataError when it cannot be read, or none of its utterances has a transcript."""
    opened: EvaluationSet
    if place.is_manifest:
        opened = _ManifestSet(place)
    else:
        opened = _ShardSet(place, storage or StorageConfig())
    if not any(entry.text for entry in opened.entries):
        reasons = ""
        if opened.rejected:
            reasons = f" {opened.num_rejected} were rejected, the first: {opened.rejected[0].reason}."
        raise DataError(
            f"None of the {len(opened.entries)} utterances at {place.path} has a transcript: no error rate can be "
            f"measured.{reasons} Name a set with transcripts."
        )
    return opened


class _ShardSet:
    """A split of shards."""

    def __init__(self, place: Place, storage: StorageConfig):
        self.place = place
        self.num_rejected = 0
        self.rejected: list[Rejected] = []
        index = read_index(place.path, max_damaged=storage.max_quarantined)
        self._reader = ShardReader(index, storage)
        self.entries: list[Entry] = []
        for row, samples in zip(index.rows(), index.samples.tolist(), strict=True):
            seconds = samples / index.sample_rate_hz
            self.entries.append(Entry(row["key"], row["text"], row["speaker"], row["language"], seconds))

    def read(self, position: int, sample_rate_hz: int) -> Waveform:
        waveform = self._reader.read(position).waveform
        rate_hz = self._reader.index.sample_rate_hz
        if rate_hz == sample_rate_hz:
            return waveform
        return soxr.resample(waveform, rate_hz, sample_rate_hz, quality="HQ").astype(np.float32, copy=False)


class _ManifestSet:
    """The rows of a manifest, whose recordings are read where they lie."""

    def __init__(self, place: Place):
        self.place = place
        self._utterances, rejected_rows = read_manifest(Path(place.path))
        if place.split:
            splits = sorted({utterance.split for utterance in self._utterances})
            if place.split not in splits:
                names = ", ".join(name or "none" for name in splits)
                raise DataError(
                    f"No row of {place.path} has the split {place.split}; those there are: {names}. Name one of these "
                    "with --split, or leave it out for all rows."
                )
            self._utterances = [utterance for utterance in self._utterances if utterance.split == place.split]
        self.rejected: list[Rejected] = []
        # Rows of whatever split: what cannot be read may have been one of this.
        self.num_rejected = len(rejected_rows)
        for row in rejected_rows[:MAX_NAMED_REJECTED]:
            self.rejected.append(Rejected(place.label, row.key or f"line {row.line}", row.reason))
        self.entries: list[Entry] = []
        for utterance in self._utterances:
            seconds = 0.0
            for clip in utterance.clips:
                seconds += clip.seconds or 0.0
            self.entries.append(Entry(utterance.key, utterance.text, utterance.speaker, utterance.language, seconds))

    def read(self, position: int, sample_rate_hz: int) -> Waveform:
        return read_audio(self._utterances[position], sample_rate_hz)
