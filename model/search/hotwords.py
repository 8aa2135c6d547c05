"""Hotwords: phrases that a search is told to expect.

A phrase that the text contains, from the start of a word to the end of one, is worth `bonus` for each of its tokens.
The bonus is given token by token, while the search can still profit from it, and taken back when the match breaks, so
that a text ends with bonus x (sum of the lengths of the phrases in it) and nothing else.

Shapes: V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from model.search.ngram import WORD_START


@dataclass
class TrieNode:
    """A beginning of phrases: its tokens without word boundaries (`depth`), whether a phrase ends here, and what is
    pending: tokens since the last phrase that ended on the way."""

    depth: int = 0
    pending: int = 0
    ends: bool = False
    children: dict[int, int] = field(default_factory=dict)


State = tuple[tuple[int, ...], bool]


class Hotwords:
    """A scorer whose state is the beginnings of phrases that the text ends with, and whether a word may start now."""

    start: State = ((), True)

    def __init__(
        self,
        phrases: Sequence[Sequence[int]],
        pieces: Sequence[str],
        bonus: float,
    ):
        """`phrases` as tokens; `pieces` the text of every token id; `bonus` natural-log points per token."""
        self.bonus = bonus
        self._begins_V = np.array([piece.startswith(WORD_START) for piece in pieces])
        self._space_V = np.array([piece == WORD_START for piece in pieces])
        # A trie of all phrases, whose root is node 0.
        self._nodes = [TrieNode()]
        for phrase in phrases:
            # The space before the first word is no part of the phrase: a text may begin with it, or without.
            tokens = list(phrase)
            while tokens and self._space_V[tokens[0]]:
                tokens.pop(0)
            if not tokens:
                continue

            node = self._nodes[0]
            for token in tokens:
                if token not in node.children:
                    depth = node.depth
                    if not self._space_V[token]:
                        depth += 1
                    node.children[token] = len(self._nodes)
                    self._nodes.append(TrieNode(depth))
                node = self._nodes[node.children[token]]
            node.ends = True
        self._count_pending(0, 0)

    def _count_pending(self, index: int, last_end: int) -> None:
        node = self._nodes[index]
        node.pending = node.depth - last_end
        if node.ends:
            last_end = node.depth
        for child in node.children.values():
            self._count_pending(child, last_end)

    def scores(self, state: State) -> np.ndarray:
        """The points of each token after the state [V]."""
        active, _ = state
        # A token that goes on with no match takes back what was given on account; one that begins a word also completes
        # the phrases that end before it.
        withdrawn = -self.bonus * self._pending(active)
        completed = withdrawn + self.bonus * self._ended(active)
        scores_V = np.where(self._begins_V, completed, withdrawn)

        # The tokens that go on with a match, or begin one, are the only others.
        tokens = set(self._nodes[0].children)
        for node in active:
            tokens |= self._nodes[node].children.keys()
        for token in tokens:
            next_active, _ = self.advance(state, token)
            scores_V[token] += self.bonus * self._pending(next_active)
        return scores_V

    def advance(self, state: State, token: int) -> State:
        """The state after a token."""
        active, at_start = state
        is_space = bool(self._space_V[token])
        begins_word = self._begins_V[token] and not is_space

        # Every match that goes on, and one that begins here.
        sources = list(active)
        if at_start or begins_word:
            sources.append(0)
        reached = set()
        for node in sources:
            child = self._nodes[node].children.get(token)
            if child is not None:
                reached.add(child)
        return tuple(sorted(reached)), is_space

    def end(self, state: State) -> float:
        """The points of a text that ends here."""
        active, _ = state
        num_tokens = self._ended(active) - self._pending(active)
        return self.bonus * num_tokens

    def _pending(self, active: tuple[int, ...]) -> int:
        """Tokens given on account: of the longest match that may still go on, or end with its word."""
        # The longest, not the sum: they are ends of the same tokens.
        pending = 0
        for node in active:
            pending = max(pending, self._nodes[node].pending)
        return pending

    def _ended(self, active: tuple[int, ...]) -> int:
        """Tokens of the phrases that are complete if a word ends here."""
        num_tokens = 0
        for node in active:
            if self._nodes[node].ends:
                num_tokens += self._nodes[node].depth
        return num_tokens
