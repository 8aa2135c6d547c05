"""What a search is told besides the recogniser: language models, hotwords and a bonus for length.

A scorer is a deterministic automaton over tokens: each token moves it to a next state and is worth some natural-log
points. Searches hold rows of a `FusionTable`, which computes the points of all next tokens once per state.

Shapes: B batch, K hypotheses, C candidate tokens, V vocabulary.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

# Numbers in a table before it forgets the states that no hypothesis is in: 128 MB.
MOST_NUMBERS = 1 << 24


class Scorer(Protocol):
    """An automaton over tokens whose states can be compared."""

    @property
    def start(self) -> Hashable:
        """The state before the first token."""
        ...

    def scores(self, state: Any) -> np.ndarray:
        """Points [V] of each next token."""
        ...

    def advance(self, state: Any, token: int) -> Hashable:
        """The state after a token."""
        ...

    def end(self, state: Any) -> float:
        """Points of ending here."""
        ...


class Fusion:
    """Weighted scorers, and `length_bonus` points for every token."""

    def __init__(self, vocabulary_size: int, scorers: Sequence[tuple[Scorer, float]], length_bonus: float = 0.0):
        self.vocabulary_size, self.scorers, self.length_bonus = vocabulary_size, tuple(scorers), length_bonus

    @property
    def start(self) -> tuple[Hashable, ...]:
        return tuple(scorer.start for scorer, _ in self.scorers)

    def scores(self, state: tuple) -> np.ndarray:
        total = np.full(self.vocabulary_size, self.length_bonus)
        for (scorer, weight), part in zip(self.scorers, state, strict=True):
            total += weight * scorer.scores(part)
        return total

    def advance(self, state: tuple, token: int) -> tuple[Hashable, ...]:
        return tuple(scorer.advance(part, token) for (scorer, _), part in zip(self.scorers, state, strict=True))

    def end(self, state: tuple) -> float:
        return sum(weight * scorer.end(part) for (scorer, weight), part in zip(self.scorers, state, strict=True))


class FusionTable:
    """The states that one search has met, as rows of points; row 0 is the start."""

    def __init__(self, fusion: Fusion, most_numbers: int = MOST_NUMBERS):
        self.fusion, self.most_rows = fusion, max(2, most_numbers // fusion.vocabulary_size)
        self._reset()
        self._row(fusion.start)

    def _reset(self) -> None:
        self._rows: dict[tuple, int] = {}
        self._states: list[tuple] = []
        self._next: dict[tuple[int, int], int] = {}
        self._scores = torch.empty(16, self.fusion.vocabulary_size, dtype=torch.float64)

    def _row(self, state: tuple) -> int:
        row = self._rows.get(state)
        if row is None:
            row = self._rows[state] = len(self._states)
            self._states.append(state)
            if row == len(self._scores):
                self._scores = torch.cat((self._scores, torch.empty_like(self._scores)))
            self._scores[row] = torch.from_numpy(self.fusion.scores(state))
        return row

    def scores(self, row_BK: Tensor, tokens_BKC: Tensor) -> Tensor:
        """Points [B, K, C] of each candidate token; tokens may be [B, 1, C]."""
        return self._scores[row_BK[..., None], tokens_BKC]

    def all_scores(self, row_BK: Tensor) -> Tensor:
        """Points [B, K, V] of every token."""
        return self._scores[row_BK]

    def advance(self, row_BK: Tensor, token_BK: Tensor, moves_BK: Tensor) -> Tensor:
        """The rows after the tokens where `moves_BK` is True, the same rows elsewhere.

        They are the only rows that are valid from now on: others may have been forgotten.
        """
        row_BK = row_BK.clone()
        for place in moves_BK.nonzero().tolist():
            move = (int(row_BK[*place]), int(token_BK[*place]))
            if move not in self._next:
                self._next[move] = self._row(self.fusion.advance(self._states[move[0]], move[1]))
            row_BK[*place] = self._next[move]
        if len(self._states) > self.most_rows:
            return self._forget_others(row_BK)
        return row_BK

    def _forget_others(self, row_BK: Tensor) -> Tensor:
        states = self._states
        self._reset()
        kept = [self._row(states[row]) for row in row_BK.flatten().tolist()]
        return torch.tensor(kept).view_as(row_BK)

    def end(self, row_BK: Tensor) -> Tensor:
        """Points [B, K] of ending here."""
        ends = [self.fusion.end(self._states[row]) for row in row_BK.flatten().tolist()]
        return torch.tensor(ends, dtype=torch.float64).view_as(row_BK)
