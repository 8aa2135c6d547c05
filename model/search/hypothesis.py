"""What every search gives: a text as tokens, where they are, and how sure the search is of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hypothesis:
    """A possible text of an utterance.

    tokens, and for each the encoder frame at which it starts (`frames`; empty when the tokens do not fit into the
    frames) and a probability (`confidences`; of what, each search says). score is a natural logarithm, the higher the
    better. probability is its share among all hypotheses that the search ended with, None where it kept only one.
    """

    tokens: list[int]
    frames: list[int]
    score: float
    confidences: list[float] = field(default_factory=list)
    probability: float | None = None


def shares(scores: Sequence[float]) -> list[float]:
    """The softmax of log scores, of which the highest is finite."""
    highest = max(scores, default=0.0)
    weights = [math.exp(score - highest) for score in scores]
    return [weight / sum(weights) for weight in weights]
