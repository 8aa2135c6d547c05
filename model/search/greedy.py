"""CTC greedy search: the best token of each frame, repeats merged, blanks removed.

Shapes: B batch, S encoder frames, V vocabulary.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.recognizer import BLANK
from model.search.hypothesis import Hypothesis


@dataclass
class _BestPath:
    """The best path of one utterance so far; `last_token` is that of its last frame.

    For each token of its text: the frame at which it starts, the one after its last, and the highest log posterior on
    its frames.
    """

    tokens: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    score: float = 0.0
    last_token: int = BLANK
    num_frames: int = 0

    def append(self, token: int, log_prob: float) -> None:
        """Take the best token of the next frame."""
        # A token after itself goes on; only a blank between them makes it a second one.
        is_repeated = token == self.last_token
        if token != BLANK and is_repeated:
            self.log_probs[-1] = max(self.log_probs[-1], log_prob)
            self.ends[-1] = self.num_frames + 1
        elif token != BLANK:
            self.tokens.append(token)
            self.starts.append(self.num_frames)
            self.ends.append(self.num_frames + 1)
            self.log_probs.append(log_prob)

        # Blanks and repeats count too: the score is that of the path, not of the text alone.
        self.score += log_prob
        self.last_token = token
        self.num_frames += 1


class GreedySearch:
    """Greedy search over utterances that arrive in pieces, however they are cut; its state is the texts alone.

    A token's confidence is its highest posterior on the frames that it takes.
    """

    def __init__(self, num_utterances: int):
        self._paths = [_BestPath() for _ in range(num_utterances)]

    def advance(self, logits_BSV: Tensor, lengths_B: Tensor) -> None:
        """Search the next frames of each utterance: logits and how many of their frames are valid, 0 for none."""
        log_probs_BSV = logits_BSV.float().log_softmax(-1)
        best_BS, tokens_BS = log_probs_BSV.max(-1)
        # Lists, as reading single elements of a tensor is slow.
        best = best_BS.tolist()
        tokens = tokens_BS.tolist()
        lengths = lengths_B.tolist()

        for row, path in enumerate(self._paths):
            for frame in range(lengths[row]):
                path.append(tokens[row][frame], best[row][frame])

    def finish(self) -> list[Hypothesis]:
        """The best path of each utterance so far; the score is its log probability."""
        hypotheses = []
        for path in self._paths:
            confidences = torch.tensor(path.log_probs).exp().tolist()
            # Copies: the paths grow when the search goes on, as it does for partial results.
            hypothesis = Hypothesis(
                tokens=list(path.tokens),
                frames=list(path.starts),
                score=path.score,
                confidences=confidences,
                ends=list(path.ends),
            )
            hypotheses.append(hypothesis)
        return hypotheses


def greedy(logits_BSV: Tensor, lengths_B: Tensor) -> list[Hypothesis]:
    """The best path of each utterance over its valid frames."""
    search = GreedySearch(len(logits_BSV))
    search.advance(logits_BSV, lengths_B)
    return search.finish()
