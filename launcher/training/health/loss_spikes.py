"""Tells a loss that jumps from the noise that every loss has."""

from collections import deque
from collections.abc import Iterable
from statistics import median

ROWS = 50
ENOUGH_ROWS = 20
# Both must be exceeded: in standard deviations of the rows (by their median deviation), and relative to their median.
DEVIATIONS, RATIO = 6.0, 1.25


class SpikeDetector:
    """Compares each row's loss with the rows before it; rows of an earlier start may be handed in."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._recent = deque(losses, maxlen=ROWS)

    def look(self, loss: float) -> float | None:
        """Return the usual loss if this one is a spike, None if it is not. A spike does not become usual at once."""
        usual = self._usual_if_exceeded(loss)
        self._recent.append(loss)
        return usual

    def _usual_if_exceeded(self, loss: float) -> float | None:
        if len(self._recent) < ENOUGH_ROWS:
            return None
        usual = median(self._recent)
        deviation = 1.4826 * median(abs(value - usual) for value in self._recent)  # of a normal distribution
        return usual if loss > max(usual + DEVIATIONS * deviation, RATIO * usual) else None
