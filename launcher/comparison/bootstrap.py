"""Bootstrap intervals of error rates (Bisani and Ney, 2004), over utterances and over seeds.

A replicate draws as many utterances as there are, and as many seeds, each with replacement. All models are compared on
the same draws, so that what makes an utterance hard for all of them does not blur their difference. A rate is that of
all drawn seeds together: errors over the length of the references.

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
    def sample(cls, num_utterances: int, num_seeds: int, replicates: int = 10_000, seed: int = 1) -> "Draws":
        """The same draws for the same arguments."""
        generator = np.random.default_rng(seed)
        utterances_RU = _draw_with_replacement(generator, num_utterances, replicates)
        seeds_RS = _draw_with_replacement(generator, num_seeds, replicates)
        return cls(utterances_RU, seeds_RS)

    def rates(self, errors_SU: Numbers, lengths_U: Numbers) -> Numbers:
        """The error rate of each replicate [R]."""
        errors_RS = self.utterances_RU @ errors_SU.T
        errors_R = np.einsum("rs,rs->r", self.seeds_RS, errors_RS)
        # Every seed has recognised the same utterances, so the length counts once per drawn seed.
        lengths_R = self.seeds_RS.sum(axis=1) * (self.utterances_RU @ lengths_U)
        return errors_R / lengths_R


def _draw_with_replacement(generator: np.random.Generator, number: int, replicates: int) -> Numbers:
    """How often each of `number` things is drawn in `number` draws, [replicates, number]."""
    probabilities = np.full(number, 1 / number)
    return generator.multinomial(number, probabilities, size=replicates).astype(np.float64)


def rate(errors_SU: Numbers, lengths_U: Numbers) -> float:
    """Errors over the length of the references, of all seeds together."""
    num_seeds = len(errors_SU)
    return float(errors_SU.sum() / (num_seeds * lengths_U.sum()))


def interval(value: float, replicates_R: Numbers, confidence: float = 0.95) -> Interval:
    """The percentiles of the replicates that leave the same share outside on both sides."""
    outside = (1 - confidence) / 2
    # Differences may be infinite, and interpolating between two infinite replicates gives NaN.
    low, high = np.quantile(replicates_R, [outside, 1 - outside], method="closest_observation")
    return Interval(value, float(low), float(high))


def relative_difference(errors_SU: Numbers, baseline_SU: Numbers, lengths_U: Numbers, draws: Draws) -> Interval:
    """How many more errors a model makes than a baseline, as a fraction of the baseline's, with its interval.

    Infinite where only the baseline makes none, 0 where both do.
    """
    value = _excess(np.array(rate(errors_SU, lengths_U)), np.array(rate(baseline_SU, lengths_U)))
    replicates_R = _excess(draws.rates(errors_SU, lengths_U), draws.rates(baseline_SU, lengths_U))
    return interval(float(value), replicates_R)


def _excess(rates: Numbers, baseline_rates: Numbers) -> Numbers:
    # Where both are 0 the quotient is NaN, and np.where computes it before it is passed over.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(rates == baseline_rates, 0.0, rates / baseline_rates - 1)
