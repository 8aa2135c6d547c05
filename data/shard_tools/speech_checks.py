"""What the audio of a split says about it: silence, clipping, lengths and speaking rates that stand out."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data.shard_tools.findings import Finding, Item, collect
from data.shard_tools.survey import SILENCE_DB, Survey

Floats = npt.NDArray[np.float64]

# One or two flat tops are a loud consonant; from here on a listener hears it.
MIN_FLAT_TOPS = 3
# Distance from the median, in deviations: of a million normal utterances, one is further out.
OUTLIER_DEVIATIONS = 5.0
# Of fewer utterances nobody can say what is usual.
MIN_POPULATION = 20
# Utterances of a similar length of text that a rate is compared with: of small splits a third, as words alone are said
# more slowly than sentences, and among all of both neither stands out.
RATE_NEIGHBOURS = 200
SHARE_OF_NEIGHBOURS = 3
# Lengths or rates that hardly differ, as of recordings cut to ten seconds each, make no outlier of one that is 5 %
# longer.
MIN_DEVIATION = 0.05
# The median absolute deviation of a normal distribution, times this, is its standard deviation.
MAD_TO_DEVIATION = 1.4826


def check_speech(survey: Survey) -> list[Finding]:
    """The warnings about the audio of a split."""
    silent: list[Item] = []
    clipped: list[Item] = []
    for row, measures in survey.measured():
        if measures.loudest_db < SILENCE_DB:
            detail = f"{row.key}: its loudest 25 ms are at {measures.loudest_db:.0f} dB"
            silent.append(Item((row.key,), detail))
        elif measures.flat_tops >= MIN_FLAT_TOPS:
            detail = f"{row.key}: {measures.flat_tops} flat tops"
            clipped.append(Item((row.key,), detail))
    findings = collect("silence", survey.split, silent)
    findings += collect("clipping", survey.split, clipped)
    findings += collect("length-outlier", survey.split, _length_outliers(survey))
    findings += collect("rate-outlier", survey.split, _rate_outliers(survey))
    return findings


def _length_outliers(survey: Survey) -> list[Item]:
    keys: list[str] = []
    seconds: list[float] = []
    for row, measures in survey.measured():
        keys.append(row.key)
        seconds.append(measures.seconds)
    if len(keys) < MIN_POPULATION:
        return []
    # Lengths are about log-normal.
    distances = np.abs(deviations(np.log(seconds)))
    outliers = np.flatnonzero(distances > OUTLIER_DEVIATIONS)
    median_s = np.median(seconds)
    items: list[Item] = []
    for position in outliers.tolist():
        key = keys[position]
        detail = f"{key}: {seconds[position]:.2f} s, median {median_s:.2f} s"
        items.append(Item((key,), detail))
    return items


def _rate_outliers(survey: Survey) -> list[Item]:
    """Utterances whose characters per second of speech are far from those of texts of about their length.

    Languages are judged apart: a Chinese character is a syllable.
    """
    by_language: dict[str, list[tuple[str, int, float]]] = {}
    for row, measures in survey.measured():
        # Silent and empty ones are findings of their own.
        if row.text.strip() and measures.speech_s > 0:
            utterance = (row.key, len(row.text), measures.speech_s)
            by_language.setdefault(row.language, []).append(utterance)

    items: list[Item] = []
    for utterances in by_language.values():
        if len(utterances) < MIN_POPULATION:
            continue
        characters = np.array([length for _, length, _ in utterances])
        speech_s = np.array([seconds for _, _, seconds in utterances])
        log_rates = np.log(characters / speech_s)
        usual = np.exp(_median_of_neighbours(characters, log_rates))
        distances = np.abs(log_rates - np.log(usual))
        # A word alone is said in many ways, and a long sentence in about one.
        spread = MAD_TO_DEVIATION * _median_of_neighbours(characters, distances)
        limits = OUTLIER_DEVIATIONS * np.maximum(spread, MIN_DEVIATION)
        for position in np.flatnonzero(distances > limits).tolist():
            key, length, seconds = utterances[position]
            rate = length / seconds
            detail = (
                f"{key}: {length} characters in {seconds:.2f} s of speech, {rate:.1f} per second where "
                f"{usual[position]:.1f} are usual"
            )
            items.append(Item((key,), detail))
    return items


def _median_of_neighbours(characters: npt.NDArray[np.int64], values: Floats) -> Floats:
    """For each utterance the median of the values of those whose texts are about as long."""
    order = np.argsort(characters, kind="stable")
    width = max(MIN_POPULATION, len(values) // SHARE_OF_NEIGHBOURS)
    width = min(RATE_NEIGHBOURS, width)
    windows = np.lib.stride_tricks.sliding_window_view(values[order], width)
    medians = np.median(windows, axis=1)
    # The window around each; at both ends the outermost window.
    first = np.arange(len(values)) - width // 2
    window = first.clip(0, len(medians) - 1)
    of_neighbours = np.empty_like(values)
    of_neighbours[order] = medians[window]
    return of_neighbours


def deviations(values: Sequence[float] | Floats) -> Floats:
    """How many deviations each value lies from the median; both are robust against a tenth of outliers."""
    numbers = np.asarray(values, dtype=np.float64)
    distances = numbers - np.median(numbers)
    deviation = MAD_TO_DEVIATION * float(np.median(np.abs(distances)))
    return distances / max(deviation, MIN_DEVIATION)
