"""Whether confidences of words say how often words are right: reliability curve, ECE, and a temperature.

The expected calibration error (Naeini et al., 2015) is over ten bins of equal width, weighted by their words. A
temperature (Guo et al., 2017) divides the log odds of a confidence; it is fitted on another set, by the likelihood of
what was right there, and leaves the order of words as it is.
"""

import math
from collections.abc import Sequence
from typing import Any

import jiwer
import numpy as np
import numpy.typing as npt

from launcher.evaluation.normalisation import Normaliser

Numbers = npt.NDArray[np.float64]

NUM_BINS = 10
# Log odds of 0 and 1 are infinite.
LEAST = 1e-6
# A set in which every word, or none, is right has no best temperature.
LOWEST_TEMPERATURE = 0.05
HIGHEST_TEMPERATURE = 20.0
# Halves of an interval of log temperatures: far below what a set of words can tell.
FIT_STEPS = 60


def judged_words(
    reference: str, words: Sequence[tuple[str, float]], normalise: Normaliser
) -> tuple[list[float], list[bool]]:
    """The confidence of each word of a hypothesis, and whether it stands at its place in the reference.

    Words are normalised one by one: what is left of one that becomes several words has its confidence, and one of which
    nothing is left is not judged.
    """
    written = []
    confidences = []
    for text, confidence in words:
        for part in normalise(text).split():
            written.append(part)
            confidences.append(confidence)
    right = [False] * len(written)
    output = jiwer.process_words(" ".join(normalise(reference).split()), " ".join(written))
    for chunk in output.alignments[0]:
        if chunk.type == "equal":
            for position in range(chunk.hyp_start_idx, chunk.hyp_end_idx):
                right[position] = True
    return confidences, right


def calibration(confidences: Sequence[float], right: Sequence[bool], temperature: float | None) -> dict[str, Any]:
    """ECE, mean negative log-likelihood and reliability curve of words; with a temperature, after it too."""
    confidences_W = np.array(confidences, np.float64)
    right_W = np.array(right, np.float64)
    result: dict[str, Any] = {"words": len(confidences_W), "temperature": temperature}
    if len(confidences_W) == 0:
        return result
    result["accuracy"] = float(right_W.mean())
    result["as_given"] = _measure(confidences_W, right_W)
    if temperature is not None:
        result["tempered"] = _measure(apply_temperature(confidences_W, temperature), right_W)
    return result


def _measure(confidences_W: Numbers, right_W: Numbers) -> dict[str, Any]:
    curve = []
    ece = 0.0
    # A confidence of 1 belongs to the last bin.
    bins_W = np.minimum((confidences_W * NUM_BINS).astype(int), NUM_BINS - 1)
    for number in range(NUM_BINS):
        chosen = bins_W == number
        num_words = int(chosen.sum())
        if num_words == 0:
            continue
        confidence = float(confidences_W[chosen].mean())
        accuracy = float(right_W[chosen].mean())
        ece += num_words / len(confidences_W) * abs(confidence - accuracy)
        curve.append(
            {
                "low": number / NUM_BINS,
                "high": (number + 1) / NUM_BINS,
                "words": num_words,
                "confidence": confidence,
                "accuracy": accuracy,
            }
        )
    return {"ece": ece, "nll": _negative_log_likelihood(confidences_W, right_W), "curve": curve}


def apply_temperature(confidences_W: Numbers, temperature: float) -> Numbers:
    """sigmoid(logit(p) / T)."""
    return 1 / (1 + np.exp(-_log_odds(confidences_W) / temperature))


def fit_temperature(confidences: Sequence[float], right: Sequence[bool]) -> float | None:
    """The temperature under which what was right is likeliest; None without words."""
    if not confidences:
        return None
    confidences_W = np.array(confidences, np.float64)
    right_W = np.array(right, np.float64)
    odds_W = _log_odds(confidences_W)

    def slope(log_temperature: float) -> float:
        """Of the negative log-likelihood, which is convex in 1 / T, by 1 / T."""
        probabilities_W = 1 / (1 + np.exp(-odds_W * math.exp(-log_temperature)))
        return float(((probabilities_W - right_W) * odds_W).sum())

    low = math.log(LOWEST_TEMPERATURE)
    high = math.log(HIGHEST_TEMPERATURE)
    for _ in range(FIT_STEPS):
        middle = (low + high) / 2
        # 1 / T is too large: the temperature must rise.
        if slope(middle) > 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _log_odds(confidences_W: Numbers) -> Numbers:
    clipped_W = np.clip(confidences_W, LEAST, 1 - LEAST)
    return np.log(clipped_W / (1 - clipped_W))


def _negative_log_likelihood(confidences_W: Numbers, right_W: Numbers) -> float:
    clipped_W = np.clip(confidences_W, LEAST, 1 - LEAST)
    return float(-(right_W * np.log(clipped_W) + (1 - right_W) * np.log(1 - clipped_W)).mean())
