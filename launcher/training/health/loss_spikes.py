"""Tells a loss that jumps from the noise that every loss has."""

from collections import deque
from collections.abc import Iterable
from statistics import median

RECENT_ROWS = 50
# A median of fewer rows says little about what is usual.
MIN_ROWS = 20
# A spike exceeds both: the median by so many standard deviations, and the median times a ratio. The first alone would
# call every wiggle of a very smooth curve a spike, the second every row of a very noisy one.
MAX_DEVIATIONS = 6.0
MAX_RATIO = 1.25
# The standard deviation of a normal distribution over its median absolute deviation, which spikes hardly move.
STD_PER_MAD = 1.4826


class SpikeDetector:
    """Compares each row's loss with the rows before it; rows of an earlier start may be handed in."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._recent = deque(losses, maxlen=RECENT_ROWS)

    def check(self, loss: float) -> float | None:
        """Return the usual loss if this one is a spike, None if it is not. A spike does not become usual at once."""
        earlier = list(self._recent)
        self._recent.append(loss)
        if len(earlier) < MIN_ROWS:
            return None
        usual = median(earlier)
        deviation = STD_PER_MAD * median(abs(value - usual) for value in earlier)
        if loss > max(usual + MAX_DEVIATIONS * deviation, MAX_RATIO * usual):
            return usual
        return None
