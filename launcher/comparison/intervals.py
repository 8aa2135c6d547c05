"""The models of a comparison with intervals: error rates and differences, all on the same draws."""

from collections.abc import Sequence

from launcher.comparison.bootstrap import Draws, Interval, interval, rate, relative_difference
from launcher.comparison.model_results import Comparison, Errors, ModelResult

# A character error rate above it: a training that did not find the alignment of frames and text.
UNCONVERGED = 0.5


class ModelIntervals:
    """A comparison with the draws that its models are compared on."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.draws = Draws.sample(comparison.utterances, comparison.models[0].seeds)

    def rate(self, errors: Errors) -> Interval:
        """The error rate of all seeds together."""
        # The estimate is the rate itself; the replicates say only how far it may lie off.
        value = rate(errors.errors_SU, errors.lengths_U)
        return interval(value, self.draws.rates(errors.errors_SU, errors.lengths_U))

    def difference(self, model: ModelResult, baseline: ModelResult, seeds: Sequence[int] | None = None) -> Interval:
        """How many more character errors a model makes than a baseline, as a fraction of the baseline's.

        `seeds` are the places of the seeds to compare; None compares all.
        """
        model_SU = model.characters.errors_SU
        baseline_SU = baseline.characters.errors_SU
        lengths_U = model.characters.lengths_U
        if seeds is None:
            return relative_difference(model_SU, baseline_SU, lengths_U, self.draws)
        # The draws have a weight for every seed, so fewer seeds need draws of their own.
        draws = Draws.sample(len(lengths_U), len(seeds))
        places = list(seeds)
        return relative_difference(model_SU[places], baseline_SU[places], lengths_U, draws)


def rates_of_seeds(errors: Errors) -> list[float]:
    """The error rate of each seed."""
    return (errors.errors_SU.sum(axis=1) / errors.lengths_U.sum()).tolist()


def converged_places(one: ModelResult, other: ModelResult) -> list[int]:
    """The places of the seeds in which both models have converged."""
    rates = zip(rates_of_seeds(one.characters), rates_of_seeds(other.characters), strict=True)
    places = []
    for place, (one_rate, other_rate) in enumerate(rates):
        if max(one_rate, other_rate) <= UNCONVERGED:
            places.append(place)
    return places
