"""The models of a comparison, judged: error rates and differences with their intervals, on the same draws."""

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.comparison.bootstrap import Draws, Interval, interval, rate, relative_difference
from launcher.comparison.model_results import Comparison, Errors, ModelResult

UNCONVERGED = 0.5  # a character error rate above it


@dataclass(frozen=True)
class ModelIntervals:
    """A comparison with the draws that its models are judged on."""

    comparison: Comparison
    draws: Draws

    @classmethod
    def of(cls, comparison: Comparison) -> "ModelIntervals":
        return cls(comparison, Draws.of(comparison.utterances, comparison.rungs[0].seeds))

    def rate(self, errors: Errors) -> Interval:
        value = rate(errors.errors_SU, errors.lengths_U)
        return interval(value, self.draws.rates(errors.errors_SU, errors.lengths_U))

    def difference(self, rung: ModelResult, than: ModelResult, seeds: Sequence[int] | None = None) -> Interval:
        """How many more character errors a rung makes than another, as a fraction of the other's; over all seeds, or
        over those at these places."""
        mine, theirs, lengths_U = rung.characters.errors_SU, than.characters.errors_SU, rung.characters.lengths_U
        if seeds is None:
            return relative_difference(mine, theirs, lengths_U, self.draws)
        draws = Draws.of(len(lengths_U), len(seeds))
        return relative_difference(mine[list(seeds)], theirs[list(seeds)], lengths_U, draws)


def rates_of_seeds(errors: Errors) -> list[float]:
    """The error rate of each seed."""
    return (errors.errors_SU.sum(axis=1) / errors.lengths_U.sum()).tolist()


def converged_places(*rungs: ModelResult) -> list[int]:
    """The places of the seeds in which all of these models have converged."""
    rates = zip(*(rates_of_seeds(rung.characters) for rung in rungs), strict=True)
    return [place for place, of_seed in enumerate(rates) if max(of_seed) <= UNCONVERGED]
