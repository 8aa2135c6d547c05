"""Errors of utterances, error rates with bootstrap intervals, by group, and which words are confused.

An interval is of the percentiles of 1000 replicates that draw as many utterances as there are, with replacement (Bisani
and Ney, 2004). Utterances of one speaker are not independent of each other: where there are few speakers, another set
may lie further away than the interval says.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jiwer
import numpy as np
import numpy.typing as npt

from launcher.evaluation.normalisation import Normaliser
from launcher.evaluation.recognition import Row
from launcher.evaluation.sets import Entry
from launcher.inference.error_counts import count_errors

Numbers = npt.NDArray[np.float64]

REPLICATES = 1000
SEED = 1
CONFIDENCE = 0.95
# Utterances drawn at a time: 16 MB of their numbers.
DRAWN_AT_ONCE = 2_000_000
# How many of each kind of confusion are given.
MOST_FREQUENT = 20
LENGTHS_S = (2.0, 5.0, 10.0, 20.0)
RATES_PER_S = (5.0, 10.0, 15.0, 20.0)
SNRS_DB = (0.0, 10.0, 20.0, 30.0)
DIMENSIONS = ("corpus", "language", "speaker", "length", "speaking rate", "signal-to-noise")


@dataclass(frozen=True)
class Scored:
    """An utterance with its texts as they are compared, and its errors."""

    corpus: str
    key: str
    speaker: str
    language: str
    seconds: float
    snr_db: float
    reference: str
    hypothesis: str
    words: jiwer.WordOutput
    characters: jiwer.CharacterOutput

    @property
    def characters_per_s(self) -> float:
        """The speaking rate: characters of the reference, spaces left out."""
        return len(self.reference.replace(" ", "")) / max(self.seconds, 1e-3)


def score(corpus: str, entry: Entry, row: Row, normalise: Normaliser) -> Scored:
    """Compare the hypothesis of an utterance with its reference, both normalised."""
    reference = normalise(entry.text)
    hypothesis = normalise(row.text)
    return Scored(
        corpus,
        entry.key,
        entry.speaker,
        entry.language,
        row.seconds,
        row.snr_db,
        reference,
        hypothesis,
        jiwer.process_words(reference, hypothesis),
        jiwer.process_characters(reference, hypothesis),
    )


def rates(scored: Sequence[Scored]) -> dict[str, Any]:
    """Character and word error rate of utterances, as fractions with their intervals."""
    return {
        "utterances": len(scored),
        "seconds": round(sum(utterance.seconds for utterance in scored), 3),
        "cer": _rate([utterance.characters for utterance in scored]),
        "wer": _rate([utterance.words for utterance in scored]),
    }


def _rate(aligned: Sequence[jiwer.WordOutput | jiwer.CharacterOutput]) -> dict[str, Any]:
    errors_U, lengths_U = error_arrays(aligned)
    kinds: Counter[str] = Counter()
    for output in aligned:
        kinds["substitutions"] += output.substitutions
        kinds["deletions"] += output.deletions
        kinds["insertions"] += output.insertions
    result: dict[str, Any] = {"errors": int(errors_U.sum()), "length": int(lengths_U.sum()), **kinds}
    value, low, high = interval(errors_U, lengths_U)
    return {"value": value, "low": low, "high": high, **result}


def error_arrays(aligned: Sequence[jiwer.WordOutput | jiwer.CharacterOutput]) -> tuple[Numbers, Numbers]:
    """Errors and lengths of the references, [U] each."""
    counts = [count_errors(output) for output in aligned]
    table_UN = np.array(counts, np.float64).reshape(len(counts), 2)
    return table_UN[:, 0], table_UN[:, 1]


def interval(errors_U: Numbers, lengths_U: Numbers) -> tuple[float | None, float | None, float | None]:
    """An error rate and the ends of its interval; None where the references hold nothing."""
    if lengths_U.sum() == 0:
        return None, None, None
    low, high = percentiles(replicate_rates(errors_U, lengths_U))
    return float(errors_U.sum() / lengths_U.sum()), low, high


def percentiles(replicates_R: Numbers) -> tuple[float, float]:
    """The ends that leave the same share of the replicates outside on both sides."""
    outside = (1 - CONFIDENCE) / 2
    # Some may be without a length.
    low, high = np.nanquantile(replicates_R, [outside, 1 - outside], method="closest_observation")
    return float(low), float(high)


def replicate_rates(errors_U: Numbers, lengths_U: Numbers) -> Numbers:
    """The error rate of each replicate [R].

    The same utterances are drawn for sets of the same size, so that two conditions can be compared replicate by
    replicate.
    """
    num_utterances = len(errors_U)
    generator = np.random.default_rng(SEED)
    at_once = max(1, DRAWN_AT_ONCE // num_utterances)
    replicates = []
    for start in range(0, REPLICATES, at_once):
        drawn_RU = generator.integers(num_utterances, size=(min(at_once, REPLICATES - start), num_utterances))
        with np.errstate(invalid="ignore", divide="ignore"):
            replicates.append(errors_U[drawn_RU].sum(axis=1) / lengths_U[drawn_RU].sum(axis=1))
    return np.concatenate(replicates)


def group_rates(scored: Sequence[Scored]) -> dict[str, dict[str, dict[str, Any]]]:
    """The rates of each group of every dimension in which there are two groups or more."""
    names: dict[str, Callable[[Scored], str]] = {
        "corpus": lambda utterance: utterance.corpus,
        "language": lambda utterance: utterance.language or "unknown",
        "speaker": lambda utterance: utterance.speaker or "unknown",
        "length": lambda utterance: bucket(utterance.seconds, LENGTHS_S, "s"),
        "speaking rate": lambda utterance: bucket(utterance.characters_per_s, RATES_PER_S, "characters/s"),
        "signal-to-noise": lambda utterance: bucket(utterance.snr_db, SNRS_DB, "dB"),
    }
    order = {}
    for dimension, edges, unit in (
        ("length", LENGTHS_S, "s"),
        ("speaking rate", RATES_PER_S, "characters/s"),
        ("signal-to-noise", SNRS_DB, "dB"),
    ):
        middles = [edges[0] - 1, *edges]
        order[dimension] = [bucket(middle, edges, unit) for middle in middles]
    groups = {}
    for dimension in DIMENSIONS:
        members: dict[str, list[Scored]] = {}
        for utterance in scored:
            members.setdefault(names[dimension](utterance), []).append(utterance)
        if len(members) < 2:
            continue
        listed = [name for name in order.get(dimension, sorted(members)) if name in members]
        groups[dimension] = {name: rates(members[name]) for name in listed}
    return groups


def bucket(value: float, edges: Sequence[float], unit: str) -> str:
    """The name of the bucket that a value falls into; an edge belongs to the bucket above it."""
    if value < edges[0]:
        return f"below {edges[0]:g} {unit}"
    for low, high in pairwise(edges):
        if value < high:
            return f"{low:g} to {high:g} {unit}"
    return f"{edges[-1]:g} {unit} or more"


def confusions(aligned: Iterable[jiwer.WordOutput | jiwer.CharacterOutput]) -> dict[str, list[dict[str, Any]]]:
    """The most frequent substitutions, insertions and deletions."""
    substitutions: Counter[tuple[str, str]] = Counter()
    insertions: Counter[str] = Counter()
    deletions: Counter[str] = Counter()
    for output in aligned:
        for reference, hypothesis, chunks in zip(output.references, output.hypotheses, output.alignments, strict=True):
            for chunk in chunks:
                expected = reference[chunk.ref_start_idx : chunk.ref_end_idx]
                written = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
                if chunk.type == "substitute":
                    substitutions.update(zip(expected, written, strict=True))
                elif chunk.type == "insert":
                    insertions.update(written)
                elif chunk.type == "delete":
                    deletions.update(expected)
    listed: dict[str, list[dict[str, Any]]] = {"substitutions": [], "insertions": [], "deletions": []}
    for (expected, written), count in _most_frequent(substitutions):
        listed["substitutions"].append({"reference": expected, "hypothesis": written, "count": count})
    for kind, counts in (("insertions", insertions), ("deletions", deletions)):
        for text, count in _most_frequent(counts):
            listed[kind].append({"text": text, "count": count})
    return listed


def _most_frequent(counts: Counter[Any]) -> list[tuple[Any, int]]:
    # Of equally frequent ones the order of the alphabet, not of the utterances.
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_FREQUENT]
