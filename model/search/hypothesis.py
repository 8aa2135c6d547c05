"""The result of every search: a text as tokens, where they are, and how sure the search is of them.

Shapes: N hypotheses of all utterances, U tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Hypothesis:
    """A possible text of an utterance.

    tokens, and for each the encoder frame at which it starts (`frames`), the frame after its last one (`ends`; both
    empty when the tokens do not fit into the frames) and a probability (`confidences`; of what, each search says).
    score is a natural logarithm, the higher the better. probability is its share among all hypotheses that the search
    ended with, None where it kept only one.
    """

    tokens: list[int]
    frames: list[int]
    score: float
    confidences: list[float] = field(default_factory=list)
    probability: float | None = None
    ends: list[int] = field(default_factory=list)


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
    scores = [hypothesis.score for hypothesis in ordered]
    result = []
    for hypothesis, probability in zip(ordered, shares(scores), strict=True):
        result.append(replace(hypothesis, probability=probability))
    return result


def flatten(hypotheses: Sequence[Sequence[Hypothesis]]) -> list[Hypothesis]:
    """The hypotheses of all utterances, one utterance after the other, as in the rows of `stack_texts`."""
    flat = []
    for utterance_hypotheses in hypotheses:
        flat.extend(utterance_hypotheses)
    return flat


def unflatten(
    flat: Sequence[Hypothesis],
    like: Sequence[Sequence[Hypothesis]],
) -> list[list[Hypothesis]]:
    """Undo `flatten`: as many hypotheses for each utterance as it has in `like`."""
    hypotheses = []
    start = 0
    for utterance_hypotheses in like:
        end = start + len(utterance_hypotheses)
        # An utterance without hypotheses keeps its place, with none.
        hypotheses.append(list(flat[start:end]))
        start = end
    return hypotheses


def stack_texts(
    hypotheses: Sequence[Sequence[Hypothesis]],
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:
    """The texts of all utterances, one utterance after the other: the utterance [N] of each, its tokens [N, U] padded
    with zeros, and their number [N]. There must be at least one."""
    utterances = []
    texts = []
    lengths = []
    for utterance, utterance_hypotheses in enumerate(hypotheses):
        for hypothesis in utterance_hypotheses:
            tokens = hypothesis.tokens
            utterances.append(utterance)
            # The dtype is named, as torch makes floats of an empty list.
            texts.append(torch.tensor(tokens, dtype=torch.int64))
            lengths.append(len(tokens))

    row_N = torch.tensor(utterances, device=device)
    # Padded on the CPU and moved once, instead of once per text.
    tokens_NU = pad_sequence(texts, batch_first=True)
    token_lengths_N = torch.tensor(lengths, device=device)
    return row_N, tokens_NU.to(device), token_lengths_N
