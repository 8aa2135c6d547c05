"""One evaluation: sets recognised, errors counted, and what was asked for beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from data.errors import DataError
from launcher.evaluation.calibration import calibration, fit_temperature, judged_words
from launcher.evaluation.conditions import Condition, conditions
from launcher.evaluation.normalisation import Normaliser, basic
from launcher.evaluation.recognition import Batch, Outcome, Row, make_batches
from launcher.evaluation.scores import (
    Scored,
    confusions,
    error_arrays,
    group_rates,
    interval,
    percentiles,
    rates,
    replicate_rates,
    score,
)
from launcher.evaluation.sets import EvaluationSet, Rejected

FORMAT = 1
# Utterances that are recognised alone to see how long that takes.
LATENCY_UTTERANCES = 50
PERCENTILES = (50, 90, 99)
# What is done, and how much of how much.
OnProgress = Callable[[str, int, int], None]


class Recognisers(Protocol):
    """What recognises: `launcher.evaluation.recognition.RecogniserPool`."""

    def recognise(self, batches: Sequence[Batch]) -> Any: ...

    def latencies(self, batches: Sequence[Batch]) -> list[tuple[float, float]]: ...


@dataclass(frozen=True)
class Plan:
    """What is measured: the sets whose error rates are wanted, by their numbers among all, the sets that a temperature
    is fitted on, and how many utterances go through every condition (0: none)."""

    measured: tuple[int, ...]
    fitted: tuple[int, ...]
    robustness: int
    sample_rate_hz: int
    noise: str | None = None


@dataclass
class _Recognised:
    """The rows of some sets, what could not be read, and how long recognising took."""

    rows: list[Row]
    broken: list[Rejected]
    busy_s: float


def evaluate_sets(
    sets: Sequence[EvaluationSet],
    recognisers: Recognisers,
    plan: Plan,
    normaliser: Normaliser,
    normalisation: str,
    on_progress: OnProgress,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results, and a row for each utterance that was recognised. DataError when none of a set could be."""
    recognised = _recognise_whole(sets, recognisers, plan.measured, "utterances", on_progress)
    scored = _score(sets, recognised.rows, normaliser)
    audio_s = sum(row.seconds for row in recognised.rows)

    # Where numbers become digits, words of the two texts no longer stand side by side.
    normalise_word = basic if normalisation == "english" else normaliser
    temperature = None
    broken = recognised.broken
    if plan.fitted:
        dev = _recognise_whole(sets, recognisers, plan.fitted, "utterances for the temperature", on_progress)
        broken = broken + dev.broken
        temperature = fit_temperature(*_judge(sets, dev.rows, normalise_word))
    results: dict[str, Any] = {
        "format": FORMAT,
        "normalisation": normalisation,
        "sets": [_describe(sets, number, recognised) for number in plan.measured],
        "rates": rates(scored),
        "groups": group_rates(scored),
        "confusions": {
            "words": confusions([utterance.words for utterance in scored]),
            "characters": confusions([utterance.characters for utterance in scored]),
        },
        "calibration": calibration(*_judge(sets, recognised.rows, normalise_word), temperature),
        "speed": {
            "rtf": recognised.busy_s / audio_s,
            **_latency(recognisers.latencies(_sample(sets, plan.measured, LATENCY_UTTERANCES))),
        },
    }
    if plan.robustness:
        table, broken_under_conditions = _robustness(sets, recognisers, plan, normaliser, recognised, on_progress)
        results["robustness"] = table
        broken = broken + broken_under_conditions
    rejected = []
    for number in (*plan.measured, *plan.fitted):
        rejected += sets[number].rejected
    results["broken"] = [vars(item) for item in broken]
    results["rejected"] = [vars(item) for item in rejected]
    return results, _utterance_rows(sets, recognised.rows, scored)


def _recognise_whole(
    sets: Sequence[EvaluationSet],
    recognisers: Recognisers,
    numbers: Sequence[int],
    what: str,
    on_progress: OnProgress,
) -> _Recognised:
    """Every utterance that has a transcript."""
    batches = []
    for number in numbers:
        entries = sets[number].entries
        transcribed = [position for position, entry in enumerate(entries) if entry.text]
        batches += make_batches(number, entries, transcribed)
    recognised = _recognise(sets, recognisers, batches, what, on_progress)
    for number in numbers:
        if not any(row.number == number for row in recognised.rows):
            raise DataError(
                f"None of the utterances at {sets[number].place.path} could be read. The last one: "
                f"{recognised.broken[-1].reason}"
            )
    return recognised


def _recognise(
    sets: Sequence[EvaluationSet],
    recognisers: Recognisers,
    batches: Sequence[Batch],
    what: str,
    on_progress: OnProgress,
) -> _Recognised:
    total = sum(len(batch.positions) for batch in batches)
    recognised = _Recognised([], [], 0.0)
    num_done = 0
    outcome: Outcome
    for outcome in recognisers.recognise(batches):
        recognised.rows += outcome.rows
        recognised.busy_s += outcome.busy_s
        opened = sets[outcome.batch.number]
        for position, reason in outcome.broken:
            key = opened.entries[position].key
            recognised.broken.append(Rejected(opened.place.label, key, reason))
        num_done += len(outcome.batch.positions)
        on_progress(what, num_done, total)
    # By set and key, whatever the batches or the order of the shards were: two evaluations are to be compared line by
    # line, and replicates draw utterances by their place.
    recognised.rows.sort(key=lambda row: (row.number, sets[row.number].entries[row.position].key, row.position))
    return recognised


def _score(sets: Sequence[EvaluationSet], rows: Sequence[Row], normaliser: Normaliser) -> list[Scored]:
    scored = []
    for row in rows:
        opened = sets[row.number]
        scored.append(score(opened.place.label, opened.entries[row.position], row, normaliser))
    return scored


def _judge(
    sets: Sequence[EvaluationSet], rows: Sequence[Row], normaliser: Normaliser
) -> tuple[list[float], list[bool]]:
    """The words of all rows: their confidences, and whether they are right."""
    confidences: list[float] = []
    right: list[bool] = []
    for row in rows:
        reference = sets[row.number].entries[row.position].text
        confidences_of_row, right_of_row = judged_words(reference, row.words, normaliser)
        confidences += confidences_of_row
        right += right_of_row
    return confidences, right


def _describe(sets: Sequence[EvaluationSet], number: int, recognised: _Recognised) -> dict[str, Any]:
    """The counts of a set: utterances = recognised + broken + those without a transcript."""
    opened = sets[number]
    rows = [row for row in recognised.rows if row.number == number]
    without_text = sum(not entry.text for entry in opened.entries)
    return {
        "label": opened.place.label,
        "path": opened.place.path,
        "utterances": len(opened.entries),
        "recognised": len(rows),
        "broken": len(opened.entries) - len(rows) - without_text,
        "without_transcript": without_text,
        "rejected_rows": opened.num_rejected,
        "seconds": round(sum(row.seconds for row in rows), 3),
    }


def _sample(
    sets: Sequence[EvaluationSet], numbers: Sequence[int], most: int, condition: int | None = None
) -> list[Batch]:
    """At most so many transcribed utterances, spread over all sets, as batches; the same for every condition."""
    transcribed = []
    for number in numbers:
        for position, entry in enumerate(sets[number].entries):
            if entry.text:
                transcribed.append((number, position))
    stride = max(1, len(transcribed) / most)
    chosen = [transcribed[int(place * stride)] for place in range(min(most, len(transcribed)))]
    batches = []
    for number in numbers:
        positions = [position for set_number, position in chosen if set_number == number]
        batches += make_batches(number, sets[number].entries, positions, condition)
    return batches


def _latency(measured: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """How long utterances take that are recognised one at a time: seconds, and seconds per second of audio."""
    if not measured:
        return {"latency": None}
    seconds_U = np.array([elapsed_s for _, elapsed_s in measured])
    relative_U = np.array([elapsed_s / seconds for seconds, elapsed_s in measured])
    latency: dict[str, Any] = {"utterances": len(measured)}
    for share in PERCENTILES:
        latency[f"p{share}_s"] = float(np.percentile(seconds_U, share))
    latency["p50_per_audio_s"] = float(np.percentile(relative_U, 50))
    return {"latency": latency}


def _robustness(
    sets: Sequence[EvaluationSet],
    recognisers: Recognisers,
    plan: Plan,
    normaliser: Normaliser,
    clean: _Recognised,
    on_progress: OnProgress,
) -> tuple[list[dict[str, Any]], list[Rejected]]:
    """A row for recordings as they are and one for each condition, all of the same utterances."""
    sample = _sample(sets, plan.measured, plan.robustness)
    chosen = {(batch.number, position) for batch in sample for position in batch.positions}
    clean_rows = [row for row in clean.rows if (row.number, row.position) in chosen]
    scored_clean = {}
    for row, utterance in zip(clean_rows, _score(sets, clean_rows, normaliser), strict=True):
        scored_clean[row.number, row.position] = utterance
    table = [{"condition": "as it is", **_rates_of_condition(list(scored_clean.values()), None)}]
    broken: list[Rejected] = []
    broken_clean = {(item.corpus, item.key) for item in clean.broken}
    condition: Condition
    for number, condition in enumerate(conditions(plan.sample_rate_hz, plan.noise)):
        if condition.missing:
            table.append({"condition": condition.name, "missing": condition.missing})
            continue
        batches = _sample(sets, plan.measured, plan.robustness, number)
        recognised = _recognise(sets, recognisers, batches, f"utterances, {condition.name}", on_progress)
        for item in recognised.broken:
            # What cannot be read is named once.
            if (item.corpus, item.key) not in broken_clean:
                broken.append(item)
        pairs = []
        for row, utterance in zip(recognised.rows, _score(sets, recognised.rows, normaliser), strict=True):
            if (row.number, row.position) in scored_clean:
                pairs.append((utterance, scored_clean[row.number, row.position]))
        changed = [utterance for utterance, _ in pairs]
        unchanged = [utterance for _, utterance in pairs]
        table.append({"condition": condition.name, **_rates_of_condition(changed, unchanged)})
    return table, broken


def _rates_of_condition(changed: list[Scored], unchanged: list[Scored] | None) -> dict[str, Any]:
    """Error rates with intervals, and by how much they lie above those of the same utterances as they are."""
    result: dict[str, Any] = {"utterances": len(changed)}
    if not changed:
        return result
    for name, aligned in (
        ("cer", lambda utterance: utterance.characters),
        ("wer", lambda utterance: utterance.words),
    ):
        errors_U, lengths_U = error_arrays([aligned(utterance) for utterance in changed])
        value, low, high = interval(errors_U, lengths_U)
        result[name] = {"value": value, "low": low, "high": high}
        if unchanged is not None and value is not None:
            clean_errors_U, _ = error_arrays([aligned(utterance) for utterance in unchanged])
            # The same utterances are drawn for both, replicate by replicate.
            excess_R = replicate_rates(errors_U, lengths_U) - replicate_rates(clean_errors_U, lengths_U)
            low, high = percentiles(excess_R)
            excess = float((errors_U - clean_errors_U).sum() / lengths_U.sum())
            result[f"{name}_increase"] = {"value": excess, "low": low, "high": high}
    return result


def _utterance_rows(
    sets: Sequence[EvaluationSet], rows: Sequence[Row], scored: Sequence[Scored]
) -> list[dict[str, Any]]:
    """A line for each utterance: its texts as they were, as they were compared, and its errors."""
    lines = []
    for row, utterance in zip(rows, scored, strict=True):
        entry = sets[row.number].entries[row.position]
        word_errors, words = error_arrays([utterance.words])
        character_errors, characters = error_arrays([utterance.characters])
        lines.append(
            {
                "corpus": utterance.corpus,
                "key": entry.key,
                "speaker": entry.speaker,
                "language": entry.language,
                "seconds": round(row.seconds, 3),
                "snr_db": round(row.snr_db, 1),
                "reference": entry.text,
                "hypothesis": row.text,
                "normalised_reference": utterance.reference,
                "normalised_hypothesis": utterance.hypothesis,
                "word_errors": int(word_errors[0]),
                "words": int(words[0]),
                "character_errors": int(character_errors[0]),
                "characters": int(characters[0]),
                "confidences": [[text, round(confidence, 4)] for text, confidence in row.words],
            }
        )
    return lines
