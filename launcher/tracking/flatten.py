"""Rows as backends draw them: one curve per number."""

import math
from typing import Any


def flatten_numbers(row: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a row; a list becomes one number per element, NAME/00 and so on."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        items = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(items, list | tuple):
            flat.update({f"{key}/{index:02d}": item for index, item in enumerate(items)})
        else:
            flat[key] = items
    return {key: value for key, value in flat.items() if isinstance(value, int | float) and math.isfinite(value)}
