"""Rows as backends draw them: one curve per number."""

import math
from typing import Any


def flatten_numbers(row: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a row; a list becomes one number per element, NAME/00 and so on."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        # Scalars and arrays of numpy and torch become Python's own numbers and lists.
        if hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, list | tuple):
            for index, item in enumerate(value):
                flat[f"{key}/{index:02d}"] = item
        else:
            flat[key] = value

    numbers = {}
    for key, value in flat.items():
        # A curve has no place for what is not finite, and texts are no curve.
        if isinstance(value, int | float) and math.isfinite(value):
            numbers[key] = value
    return numbers
