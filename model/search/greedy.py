"""CTC greedy search: the best token of each frame, repeats merged, blanks removed.

Shapes: B batch, S encoder frames, V vocabulary.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.recognizer import BLANK
from model.search.hypothesis import Hypothesis


@dataclass
class _Found:
    """What has been found of one utterance; `last` is the token of its last frame."""

    tokens: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    score: float = 0.0
    last: int = BLANK
    num_frames: int = 0


class GreedySearch:
    """Greedy search over utterances that arrive in pieces, however they are cut; holds nothing but what it found.

    A token's confidence is its highest posterior on the frames that it takes.
    """

    def __init__(self, num_utterances: int):
        self._found = [_Found() for _ in range(num_utterances)]

    def advance(self, logits_BSV: Tensor, lengths_B: Tensor) -> None:
        """Search the next frames of each utterance: logits and how many of their frames are valid, 0 for none."""
        scores_BS, best_BS = logits_BSV.float().log_softmax(-1).max(-1)
        rows = zip(self._found, best_BS.tolist(), scores_BS.tolist(), lengths_B.tolist(), strict=True)
        for found, path, scores, length in rows:
            for token, score in zip(path[:length], scores[:length], strict=True):
                self._read(found, token, score)

    @staticmethod
    def _read(found: _Found, token: int, score: float) -> None:
        if token != BLANK:
            if token != found.last:
                found.tokens.append(token)
                found.frames.append(found.num_frames)
                found.confidences.append(score)
            else:
                found.confidences[-1] = max(found.confidences[-1], score)
        found.score += score
        found.last = token
        found.num_frames += 1

    def finish(self) -> list[Hypothesis]:
        """The best path of each utterance so far; the score is its log probability."""
        return [
            Hypothesis(
                list(found.tokens),
                list(found.frames),
                found.score,
                torch.tensor(found.confidences).exp().tolist(),
            )
            for found in self._found
        ]


def greedy(logits_BSV: Tensor, lengths_B: Tensor) -> list[Hypothesis]:
    """The best path of each utterance over its valid frames."""
    search = GreedySearch(len(logits_BSV))
    search.advance(logits_BSV, lengths_B)
    return search.finish()
