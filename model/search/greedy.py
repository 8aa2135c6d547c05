"""CTC greedy search: the best token of each frame, repeats merged, blanks removed.

Shapes: B batch, S encoder frames, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.recognizer import BLANK


@dataclass(frozen=True)
class Hypothesis:
    """tokens and, for each, the encoder frame at which it starts; score is the path's log probability."""

    tokens: list[int]
    frames: list[int]
    score: float


def greedy(logits_BSV: Tensor, lengths_B: Tensor) -> list[Hypothesis]:
    """The best path of each utterance over its valid frames."""
    scores_BS, best_BS = logits_BSV.float().log_softmax(-1).max(-1)
    hypotheses = []
    for best_S, scores_S, length in zip(best_BS, scores_BS, lengths_B.tolist(), strict=True):
        path_S = best_S[:length]
        changed_S = torch.ones_like(path_S, dtype=torch.bool)
        changed_S[1:] = path_S[1:] != path_S[:-1]
        frames = (changed_S & (path_S != BLANK)).nonzero().squeeze(1)
        hypotheses.append(Hypothesis(path_S[frames].tolist(), frames.tolist(), scores_S[:length].sum().item()))
    return hypotheses
