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
INITIAL_ROWS = 16


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
    """Weighted scorers, and `length_bonus` points for every token.

    It is a scorer too: its state is the tuple of their states.
    """

    def __init__(
        self,
        vocabulary_size: int,
        scorers: Sequence[tuple[Scorer, float]],
        length_bonus: float = 0.0,
    ):
        self.vocabulary_size = vocabulary_size
        self.scorers = tuple(scorers)
        self.length_bonus = length_bonus

    @property
    def start(self) -> tuple[Hashable, ...]:
        return tuple(scorer.start for scorer, _ in self.scorers)

    def scores(self, state: tuple) -> np.ndarray:
        """Points [V] of each next token."""
        total_V = np.full(self.vocabulary_size, self.length_bonus)
        for index, (scorer, weight) in enumerate(self.scorers):
            scores_V = scorer.scores(state[index])
            total_V += weight * scores_V
        return total_V

    def advance(self, state: tuple, token: int) -> tuple[Hashable, ...]:
        """The state after a token."""
        next_state = []
        for index, (scorer, _) in enumerate(self.scorers):
            next_state.append(scorer.advance(state[index], token))
        return tuple(next_state)

    def end(self, state: tuple) -> float:
        """Points of ending here."""
        total = 0.0
        for index, (scorer, weight) in enumerate(self.scorers):
            total += weight * scorer.end(state[index])
        return total


class FusionTable:
    """The states that one search has met, as rows of points; row 0 is the start."""

    def __init__(self, fusion: Fusion, most_numbers: int = MOST_NUMBERS):
        self.fusion = fusion
        self.most_rows = max(2, most_numbers // fusion.vocabulary_size)
        self._reset()
        self._row(fusion.start)

    def _reset(self) -> None:
        self._states: list[tuple] = []
        self._row_of_state: dict[tuple, int] = {}
        # The row after each (row, token) that a hypothesis has taken.
        self._transitions: dict[tuple[int, int], int] = {}
        vocabulary_size = self.fusion.vocabulary_size
        # fp64, as the searches' own scores: sums over a long text are compared with each other.
        self._scores = torch.empty(INITIAL_ROWS, vocabulary_size, dtype=torch.float64)

    def _row(self, state: tuple) -> int:
        """The row of a state, which is added if it is new."""
        row = self._row_of_state.get(state)
        if row is not None:
            return row

        row = len(self._states)
        self._row_of_state[state] = row
        self._states.append(state)
        if row == len(self._scores):
            # Doubled, so that the copies cost a constant number of operations per row on average.
            more_rows = torch.empty_like(self._scores)
            self._scores = torch.cat((self._scores, more_rows))
        scores_V = self.fusion.scores(state)
        self._scores[row] = torch.from_numpy(scores_V)
        return row

    def scores(self, row_BK: Tensor, tokens_BKC: Tensor) -> Tensor:
        """Points [B, K, C] of each candidate token; tokens may be [B, 1, C]."""
        row_BK1 = row_BK[..., None]
        return self._scores[row_BK1, tokens_BKC]

    def all_scores(self, row_BK: Tensor) -> Tensor:
        """Points [B, K, V] of every token."""
        return self._scores[row_BK]

    def advance(
        self,
        row_BK: Tensor,
        token_BK: Tensor,
        moves_BK: Tensor,
    ) -> Tensor:
        """The rows after the tokens where `moves_BK` is True, the same rows elsewhere.

        They are the only rows that are valid from now on: others may have been forgotten.
        """
        sources = row_BK[moves_BK].tolist()
        tokens = token_BK[moves_BK].tolist()
        targets = []
        for row, token in zip(sources, tokens, strict=True):
            target = self._transitions.get((row, token))
            if target is None:
                next_state = self.fusion.advance(self._states[row], token)
                target = self._row(next_state)
                self._transitions[row, token] = target
            targets.append(target)

        # A clone: the rows may be those of the beams before the frame, which inactive utterances keep.
        row_BK = row_BK.clone()
        row_BK[moves_BK] = torch.tensor(targets, dtype=row_BK.dtype)
        if len(self._states) <= self.most_rows:
            return row_BK

        # Keep the states of these rows alone, under new numbers.
        states = self._states
        self._reset()
        new_rows = []
        for row in row_BK.flatten().tolist():
            new_rows.append(self._row(states[row]))
        return torch.tensor(new_rows).view_as(row_BK)

    def end(self, row_BK: Tensor) -> Tensor:
        """Points [B, K] of ending here."""
        ends = []
        for row in row_BK.flatten().tolist():
            ends.append(self.fusion.end(self._states[row]))
        return torch.tensor(ends, dtype=torch.float64).view_as(row_BK)
