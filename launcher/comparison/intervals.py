"""The models of a comparison with intervals: error rates and differences, all on the same draws."""

from collections.abc import Sequence

from launcher.comparison.model_results import Comparison, Errors, ModelResult
from launcher.inference.bootstrap import Draws, Interval, Numbers, interval, rate, relative_difference

# A character error rate above it: a training that did not find the alignment of frames and text.
UNCONVERGED = 0.5


class ModelIntervals:
    """A comparison with the draws that its models are compared on."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self._draws: dict[int, Draws] = {}

    def _draws_of(self, num_seeds: int) -> Draws:
        """The draws for so many seeds: those of utterances are the same for any number."""
        if num_seeds not in self._draws:
            draws = Draws.sample(self.comparison.evaluated.utterances, num_seeds)
            # Drawn before the seeds from the same generator, they are equal: one copy of them is enough.
            for other in self._draws.values():
                draws = Draws(other.utterances_RU, draws.seeds_RS)
            self._draws[num_seeds] = draws
        return self._draws[num_seeds]

    def rate(self, errors: Errors) -> Interval:
        """The error rate of all seeds together."""
        # The estimate is the rate itself; the replicates say only how far it may lie off.
        value = rate(errors.errors_SU, errors.lengths_U)
        draws = self._draws_of(len(errors.errors_SU))
        return interval(value, draws.rates(errors.errors_SU, errors.lengths_U))

    def difference(
        self, model: ModelResult, baseline: ModelResult, seeds: Sequence[int] | None = None
    ) -> Interval | None:
        """How many more character errors a model makes than a baseline, as a fraction of the baseline's.

        Both with the same seeds: `seeds`, or else all that both have; None where they have none in common.
        """
        if seeds is None:
            seeds = common_seeds(model, baseline)
        if not seeds:
            return None
        model_SU = _errors_of_seeds(model, seeds)
        baseline_SU = _errors_of_seeds(baseline, seeds)
        # Both were measured on the same references.
        lengths_U = model.characters.lengths_U
        return relative_difference(model_SU, baseline_SU, lengths_U, self._draws_of(len(seeds)))


def _errors_of_seeds(model: ModelResult, seeds: Sequence[int]) -> Numbers:
    places = [model.seeds.index(seed) for seed in seeds]
    return model.characters.errors_SU[places]


def rates_of_seeds(errors: Errors) -> list[float]:
    """The error rate of each seed."""
    errors_S = errors.errors_SU.sum(axis=1)
    rates_S = errors_S / errors.lengths_U.sum()
    return rates_S.tolist()


def common_seeds(one: ModelResult, other: ModelResult) -> list[int]:
    """The seeds that both models have."""
    return [seed for seed in one.seeds if seed in other.seeds]


def converged_seeds(one: ModelResult, other: ModelResult) -> list[int]:
    """The seeds in which both models have converged."""
    rates = dict(zip(one.seeds, rates_of_seeds(one.characters), strict=True))
    other_rates = dict(zip(other.seeds, rates_of_seeds(other.characters), strict=True))
    seeds = []
    for seed in common_seeds(one, other):
        if max(rates[seed], other_rates[seed]) <= UNCONVERGED:
            seeds.append(seed)
    return seeds
