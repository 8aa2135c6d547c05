"""The models of a comparison with intervals: error rates and differences, all on the same draws."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.comparison.model_results import Comparison, Errors, ModelResult
from launcher.inference.bootstrap import Draws, Interval, Numbers, interval, rate, relative_difference

# A character error rate above it: a training that did not find the alignment of frames and text.
UNCONVERGED = 0.5


@dataclass(frozen=True)
class BaselineDifference:
    """How a model differs from one that it is to be compared with.

    `converged` is the same for the seeds in which both have converged, `converged_seeds`, where these are not all: a
    seed that has not converged outweighs all others. Without such seeds it is None.
    """

    baseline: str
    difference: Interval | None
    converged_seeds: tuple[int, ...]
    converged: Interval | None


@dataclass(frozen=True)
class ModelDifferences:
    """How a model differs from the first one, from its baselines, and from the last one: None for the last itself."""

    model: str
    against_first: Interval | None
    baselines: tuple[BaselineDifference, ...]
    against_last: Interval | None


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

    def differences(self) -> list[ModelDifferences]:
        """Errors in characters of all models but the first, which differs from nothing."""
        models = self.comparison.models
        last = models[-1]
        rows = []
        for previous, model in itertools.pairwise(models):
            baselines = [baseline for baseline in models if baseline.name in model.compare_to]
            # Of a recipe that names no baseline, models are steps of a ladder: each follows from the one before.
            if not baselines:
                baselines = [previous]
            against_last = None
            if model is not last:
                against_last = self.difference(model, last)
            against_baselines = tuple(self._against(model, baseline) for baseline in baselines)
            rows.append(
                ModelDifferences(model.name, self.difference(model, models[0]), against_baselines, against_last)
            )
        return rows

    def _against(self, model: ModelResult, baseline: ModelResult) -> BaselineDifference:
        seeds = converged_seeds(baseline, model)
        converged = None
        if 0 < len(seeds) < len(common_seeds(baseline, model)):
            converged = self.difference(model, baseline, seeds=seeds)
        return BaselineDifference(baseline.name, self.difference(model, baseline), tuple(seeds), converged)


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
