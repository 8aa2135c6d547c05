"""What is in a split, counted from its records; no audio is read."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.sampling.sampler import BatchSampler
from data.shards.index import ShardIndex, read_index, read_report

# A bucket of the plan holds the micro-batches whose longest utterances lie between such lengths, in seconds.
BUCKET_EDGES_S = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0, 60.0)


def stats(folder: Path) -> dict[str, Any]:
    """Hours, lengths in seconds, characters, speakers, languages (or "unknown") of a split.

    DataError when it has no utterance; raises as `read_index`.
    """
    index = _read_utterances(folder)
    report = read_report(folder)
    seconds = index.samples / index.sample_rate_hz

    speakers: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    characters: set[str] = set()
    for row in index.rows():
        speakers[row["speaker"] or "unknown"] += 1
        languages[row["language"] or "unknown"] += 1
        characters.update(row["text"])

    return {
        "utterances": len(index),
        "hours": report.seconds / 3600,
        "shards": report.shards,
        "bytes": report.bytes,
        "sample_rate_hz": index.sample_rate_hz,
        "rejected": len(report.rejected),
        "seconds": {
            "shortest": float(seconds.min()),
            "mean": float(seconds.mean()),
            "95 %": float(np.quantile(seconds, 0.95)),
            "longest": float(seconds.max()),
        },
        "characters": {
            "total": int(index.text_length.sum()),
            "distinct": "".join(sorted(characters)),
        },
        "speakers": dict(sorted(speakers.items())),
        "languages": dict(sorted(languages.items())),
    }


def _read_utterances(folder: Path) -> ShardIndex:
    index = read_index(folder)
    if len(index) == 0:
        raise DataError(
            f"The split at {folder} has no utterance, and nothing of it can be counted. Remove its folder, or prepare "
            "the corpus again."
        )
    return index


@dataclass(frozen=True)
class Distributions:
    """The values of a split that a picture is drawn of.

    seconds [N] of each utterance, characters [N] of its text; seconds of each speaker and language (empty where it is
    not known), utterances of each character.
    """

    seconds: np.ndarray
    characters: np.ndarray
    seconds_of_speaker: Counter[str]
    seconds_of_language: Counter[str]
    uses_of_character: Counter[str]


def distributions(folder: Path) -> Distributions:
    """Read the records of a split. Raises as `stats`."""
    index = _read_utterances(folder)
    seconds = index.samples / index.sample_rate_hz
    of_speaker: Counter[str] = Counter()
    of_language: Counter[str] = Counter()
    of_character: Counter[str] = Counter()
    for row, length in zip(index.rows(), seconds.tolist(), strict=True):
        of_speaker[row["speaker"]] += length
        of_language[row["language"]] += length
        of_character.update(set(row["text"]))
    return Distributions(seconds, index.text_length, of_speaker, of_language, of_character)


@dataclass(frozen=True)
class Bucket:
    """The micro-batches of one epoch whose longest utterance lasts from `from_s` up to `to_s`.

    audio_s: of their utterances, after the speed perturbation; padded_s: with the silence that fills up shorter ones.
    """

    from_s: float
    to_s: float
    micro_batches: int
    utterances: int
    audio_s: float
    padded_s: float

    @property
    def padding(self) -> float:
        """The share of silence."""
        return 1 - self.audio_s / self.padded_s


def measure_buckets(sampler: BatchSampler) -> list[Bucket]:
    """The plan of the first epoch by length; buckets without a micro-batch are left out."""
    edges = (*BUCKET_EDGES_S, float("inf"))
    # Micro-batches, utterances, samples, padded samples.
    sums = np.zeros((len(edges) - 1, 4), dtype=np.int64)
    for step in range(sampler.steps_per_epoch):
        for lane in range(sampler.batches.lanes):
            samples = sampler.micro_batch(step, lane).samples
            if not len(samples):
                continue
            longest = int(samples.max())
            bucket = int(np.searchsorted(edges, longest / sampler.sample_rate_hz, side="right")) - 1
            sums[bucket] += (1, len(samples), int(samples.sum()), len(samples) * longest)
    buckets: list[Bucket] = []
    for bucket, (micro_batches, utterances, samples, padded) in enumerate(sums.tolist()):
        if micro_batches:
            one = Bucket(
                from_s=edges[bucket],
                to_s=edges[bucket + 1],
                micro_batches=micro_batches,
                utterances=utterances,
                audio_s=samples / sampler.sample_rate_hz,
                padded_s=padded / sampler.sample_rate_hz,
            )
            buckets.append(one)
    return buckets
