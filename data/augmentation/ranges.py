"""Ranges that a value is drawn from, as a recipe gives them: [lowest, highest]."""

from typing import TypeAlias

from pydantic import AfterValidator

Range: TypeAlias = tuple[float, float]


def within(lowest: float, highest: float) -> AfterValidator:
    """A pydantic validator of ranges whose two ends lie in their order between these two."""

    def check(ends: Range) -> Range:
        # NaN lies nowhere: it fails every comparison.
        if not lowest <= ends[0] <= ends[1] <= highest:
            raise ValueError(
                f"it is [{ends[0]:g}, {ends[1]:g}]; give the lowest value and then the highest, both from {lowest:g} "
                f"to {highest:g}"
            )
        return ends

    return AfterValidator(check)
