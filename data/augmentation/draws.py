"""Where the randomness of augmentation comes from: each draw is a hash, and none depends on another.

Which kinds of augmentation a recipe has, how many threads read, and where a run was stopped therefore change no draw
that there is without them.
"""

from collections.abc import Sequence
from typing import TypeVar

from data.augmentation.ranges import Range
from data.seeds import derive_seed

Item = TypeVar("Item")


class Draws:
    """The draws for one purpose, such as an utterance at a step: `Draws(seed, step, key)`."""

    def __init__(self, seed: int, *purpose: int | str):
        self._seed = seed
        self._purpose = purpose

    def uniform(self, name: str) -> float:
        """A number in [0, 1), the same whenever it is asked for under this name."""
        # A float64 holds 53 bits exactly: rounding all 63 could give 1.
        bits = derive_seed(self._seed, "augmentation", name, *self._purpose) >> 10
        return bits * 2.0**-53

    def between(self, name: str, ends: Range) -> float:
        """A number from a range, every one alike."""
        lowest, highest = ends
        return lowest + (highest - lowest) * self.uniform(name)

    def below(self, name: str, count: int) -> int:
        """A whole number from 0 to count - 1."""
        return int(self.uniform(name) * count)

    def choose(self, name: str, items: Sequence[Item]) -> Item:
        """One of some items."""
        return items[self.below(name, len(items))]

    def happens(self, name: str, probability: float) -> bool:
        """Whether something of a probability happens: never at 0, always at 1."""
        return self.uniform(name) < probability
