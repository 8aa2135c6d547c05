"""One look for each model in all figures of a page: a colour and, where there are more models than colours, dashes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from launcher.report import svg

# Patterns of lines and marks of points, so that a colour is never all that tells two models apart.
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_MARKS = ("o", "s", "^", "D", "v", "P")


class Look(NamedTuple):
    """How the lines and points of a model are drawn."""

    colour: str
    dashes: Any
    mark: str


class ModelLooks:
    """The look of each model by its place among the stages of the run."""

    def __init__(self, models: Sequence[str]) -> None:
        self._places = {model: place for place, model in enumerate(dict.fromkeys(models))}

    def look(self, model: str) -> Look:
        """That of a model; one that was not named takes the next place."""
        place = self._places.setdefault(model, len(self._places))
        num_colours = len(svg.SERIES)
        # The second round of colours has other dashes, so that two models share at most one of the two.
        dashes = _DASHES[place // num_colours % len(_DASHES)]
        return Look(svg.SERIES[place % num_colours], dashes, _MARKS[place % len(_MARKS)])

    def number(self, model: str) -> int:
        """The number of its colour in the page (--series-N)."""
        return self._places.setdefault(model, len(self._places)) % len(svg.SERIES)
