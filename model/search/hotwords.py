"""Hotwords: phrases that a search is told to expect.

A phrase that the text contains, from the start of a word to the end of one, is worth `bonus` for each of its tokens.
The bonus is given token by token, while the search can still profit from it, and taken back when the match breaks, so
that a text ends with bonus x (sum of the lengths of the phrases in it) and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from model.search.ngram import WORD_START


@dataclass
class _Node:
    """A beginning of phrases: its tokens without word boundaries, whether a phrase ends here, and what is pending:
    tokens since the last phrase that ended on the way."""

    depth: int = 0
    pending: int = 0
    ends: bool = False
    next: dict[int, int] = field(default_factory=dict)


State = tuple[tuple[int, ...], bool]


class Hotwords:
    """A scorer whose state is the beginnings of phrases that the text ends with, and whether a word may start now."""

    start: State = ((), True)

    def __init__(self, phrases: Sequence[Sequence[int]], pieces: Sequence[str], bonus: float):
        """`phrases` as tokens; `pieces` the text of every token id; `bonus` natural-log points per token."""
        self.bonus = bonus
        self._begins_V = np.array([piece.startswith(WORD_START) for piece in pieces])
        self._space_V = np.array([piece == WORD_START for piece in pieces])
        self._nodes = [_Node()]
        for phrase in phrases:
            self._insert(phrase)
        self._count_pending(0, 0)

    def _insert(self, phrase: Sequence[int]) -> None:
        tokens = list(phrase)
        while tokens and self._space_V[tokens[0]]:
            tokens.pop(0)
        node = 0
        for token in tokens:
            node = self._child(node, token)
        self._nodes[node].ends = bool(tokens)

    def _child(self, node: int, token: int) -> int:
        parent = self._nodes[node]
        if token not in parent.next:
            parent.next[token] = len(self._nodes)
            self._nodes.append(_Node(parent.depth + (not self._space_V[token])))
        return parent.next[token]

    def _count_pending(self, node: int, last_end: int) -> None:
        here = self._nodes[node]
        here.pending = here.depth - last_end
        for child in here.next.values():
            self._count_pending(child, here.depth if here.ends else last_end)

    def scores(self, state: State) -> np.ndarray:
        """The points of each token after the state [V]."""
        active, _ = state
        # A token that goes on with no match takes back what was given on account; one that begins a word also completes
        # the phrases that end before it.
        withdrawn = -self.bonus * self._pending(active)
        scores = np.where(self._begins_V, withdrawn + self.bonus * self._ended(active), withdrawn)

        tokens = set(self._nodes[0].next)
        for node in active:
            tokens |= self._nodes[node].next.keys()
        for token in tokens:
            after, _ = self.advance(state, token)
            scores[token] += self.bonus * self._pending(after)
        return scores

    def advance(self, state: State, token: int) -> State:
        active, at_start = state
        reached = {self._nodes[node].next.get(token) for node in active}
        begins_word = at_start or (self._begins_V[token] and not self._space_V[token])
        if begins_word:
            reached.add(self._nodes[0].next.get(token))
        return tuple(sorted(node for node in reached if node is not None)), bool(self._space_V[token])

    def end(self, state: State) -> float:
        """The points of a text that ends here."""
        active, _ = state
        return self.bonus * (self._ended(active) - self._pending(active))

    def _pending(self, active: tuple[int, ...]) -> int:
        """Tokens given on account: of the longest match that may still go on, or end with its word."""
        return max((self._nodes[node].pending for node in active), default=0)

    def _ended(self, active: tuple[int, ...]) -> int:
        """Tokens of the phrases that are complete if a word ends here."""
        return sum(self._nodes[node].depth for node in active if self._nodes[node].ends)
