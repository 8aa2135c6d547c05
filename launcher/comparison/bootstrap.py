"""Bootstrap intervals of error rates (Bisani and Ney, 2004), over utterances and over seeds.

A replicate draws as many utterances as there are, and as many seeds, each with replacement; all models are judged on
the same draws, so that what makes an utterance hard for all of them does not blur their difference. A rate is that of
all drawn seeds together: errors over the length of what was said.

Shapes: R replicates, S seeds, U utterances.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Draws:
    """How often each replicate draws each utterance and each seed."""

    utterances_RU: Numbers
    seeds_RS: Numbers

    @classmethod
    def of(cls, num_utterances: int, num_seeds: int, replicates: int = 10_000, seed: int = 1) -> "Draws":
        """The same draws for the same arguments."""
        generator = np.random.default_rng(seed)

        def draw(number: int) -> Numbers:
            return generator.multinomial(number, np.full(number, 1 / number), size=replicates).astype(np.float64)

        return cls(draw(num_utterances), draw(num_seeds))

    def rates(self, errors_SU: Numbers, lengths_U: Numbers) -> Numbers:
        """The error rate of each replicate [R]."""
        errors_R = np.einsum("rs,rs->r", self.seeds_RS, self.utterances_RU @ errors_SU.T)
        return errors_R / (self.seeds_RS.sum(axis=1) * (self.utterances_RU @ lengths_U))


def rate(errors_SU: Numbers, lengths_U: Numbers) -> float:
    """Errors over the length of what was said, of all seeds together."""
    return float(errors_SU.sum() / (len(errors_SU) * lengths_U.sum()))


def interval(value: float, replicates_R: Numbers, confidence: float = 0.95) -> Interval:
    """The percentiles of the replicates that leave out the same share on both sides."""
    outside = (1 - confidence) / 2
    low, high = np.quantile(replicates_R, [outside, 1 - outside], method="closest_observation")
    return Interval(value, float(low), float(high))


def relative_difference(errors_SU: Numbers, than_SU: Numbers, lengths_U: Numbers, draws: Draws) -> Interval:
    """How many more errors a model makes than another, as a fraction of the other's, with its interval.

    Infinite where only the other makes none, 0 where both do.
    """
    value = _excess(np.array(rate(errors_SU, lengths_U)), np.array(rate(than_SU, lengths_U)))
    return interval(float(value), _excess(draws.rates(errors_SU, lengths_U), draws.rates(than_SU, lengths_U)))


def _excess(rates: Numbers, than: Numbers) -> Numbers:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(rates == than, 0.0, rates / than - 1)
