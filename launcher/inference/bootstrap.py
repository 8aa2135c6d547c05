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
Counts = npt.NDArray[np.uint8]

# Replicates whose counts are 64 bits wide at the same time.
BLOCK_REPLICATES = 500


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Draws:
    """How often each replicate draws each utterance and each seed: ten kilobytes per utterance."""

    utterances_RU: Counts
    seeds_RS: Counts

    @classmethod
    def sample(cls, num_utterances: int, num_seeds: int, replicates: int = 10_000, seed: int = 1) -> "Draws":
        """The same draws for the same arguments."""
        generator = np.random.default_rng(seed)
        # First: they are then the same for any number of seeds.
        utterances_RU = _draw_with_replacement(generator, num_utterances, replicates)
        seeds_RS = _draw_with_replacement(generator, num_seeds, replicates)
        return cls(utterances_RU, seeds_RS)

    def rates(self, errors_SU: Numbers, lengths_U: Numbers) -> Numbers:
        """The error rate of each replicate [R]."""
        rates = []
        for start in range(0, len(self.utterances_RU), BLOCK_REPLICATES):
            block = slice(start, start + BLOCK_REPLICATES)
            # Of integers, NumPy's matrix products are not BLAS and many times slower.
            utterances_RU = self.utterances_RU[block].astype(np.float64)
            seeds_RS = self.seeds_RS[block].astype(np.float64)
            errors_RS = utterances_RU @ errors_SU.T
            errors_R = np.einsum("rs,rs->r", seeds_RS, errors_RS)
            # Every seed has recognised the same utterances, so the length counts once per drawn seed.
            seeds_R = seeds_RS.sum(axis=1)
            lengths_R = seeds_R * (utterances_RU @ lengths_U)
            rates.append(errors_R / lengths_R)
        return np.concatenate(rates)


def _draw_with_replacement(generator: np.random.Generator, number: int, replicates: int) -> Counts:
    """How often each of `number` things is drawn in `number` draws, [replicates, number]."""
    probabilities = np.full(number, 1 / number)
    counts = np.empty((replicates, number), np.uint8)
    for start in range(0, replicates, BLOCK_REPLICATES):
        size = min(BLOCK_REPLICATES, replicates - start)
        block = generator.multinomial(number, probabilities, size=size)
        # The mean is 1: a count of 20 is one in 10^18.
        assert block.max(initial=0) <= np.iinfo(np.uint8).max
        counts[start : start + size] = block
    return counts


def rate(errors_SU: Numbers, lengths_U: Numbers) -> float:
    """Errors over the length of the references, of all seeds together."""
    num_seeds = len(errors_SU)
    return float(errors_SU.sum() / (num_seeds * lengths_U.sum()))


def interval(value: float, replicates_R: Numbers, confidence: float = 0.95) -> Interval:
    """The percentiles of the replicates that leave the same share outside on both sides."""
    outside = (1 - confidence) / 2
    # Differences may be infinite, and interpolating between two infinite replicates gives NaN.
    ends = [outside, 1 - outside]
    low, high = np.quantile(replicates_R, ends, method="closest_observation")
    return Interval(value, float(low), float(high))


def relative_difference(errors_SU: Numbers, baseline_SU: Numbers, lengths_U: Numbers, draws: Draws) -> Interval:
    """How many more errors a model makes than a baseline, as a fraction of the baseline's, with its interval.

    Infinite where only the baseline makes none, 0 where both do.
    """
    model_rate = np.array(rate(errors_SU, lengths_U))
    baseline_rate = np.array(rate(baseline_SU, lengths_U))
    value = _excess(model_rate, baseline_rate)
    model_rates_R = draws.rates(errors_SU, lengths_U)
    baseline_rates_R = draws.rates(baseline_SU, lengths_U)
    replicates_R = _excess(model_rates_R, baseline_rates_R)
    return interval(float(value), replicates_R)


def _excess(rates: Numbers, baseline_rates: Numbers) -> Numbers:
    # Where both are 0 the quotient is NaN, and np.where computes it before it is passed over.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(rates == baseline_rates, 0.0, rates / baseline_rates - 1)
