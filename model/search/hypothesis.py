"""The result of every search: a text as tokens, where they are, and how sure the search is of them.

Shapes: N hypotheses of all utterances, U tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


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
    # Relative to the highest, so that no exponential overflows.
    highest = max(scores, default=0.0)
    weights = [math.exp(score - highest) for score in scores]
    total = sum(weights)
    return [weight / total for weight in weights]


def ranked(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """All that a search ended with for one utterance, best first, each with its share as its probability."""
    ordered = sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)
    probabilities = shares([hypothesis.score for hypothesis in ordered])
    result = []
    for hypothesis, probability in zip(ordered, probabilities, strict=True):
        result.append(replace(hypothesis, probability=probability))
    return result


def stack_texts(
    hypotheses: Sequence[Sequence[Hypothesis]], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """The texts of all utterances, one utterance after the other: the utterance [N] of each, its tokens [N, U] padded
    with zeros, and their number [N]. There must be at least one."""
    rows = []
    texts = []
    for row, of_utterance in enumerate(hypotheses):
        for hypothesis in of_utterance:
            rows.append(row)
            texts.append(torch.tensor(hypothesis.tokens, dtype=torch.int64))
    row_N = torch.tensor(rows, device=device)
    tokens_NU = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).to(device)
    token_lengths_N = torch.tensor([len(text) for text in texts], device=device)
    return row_N, tokens_NU, token_lengths_N
