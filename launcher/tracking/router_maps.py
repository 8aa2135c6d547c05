"""Heat maps of the load per expert: over layers, and over time for each layer.

A load is an expert's share of a layer's choices, times the number of experts: 1 is an even share. Blue is less, white
even, red more; the scale ends at 0 and 2. Memory is bounded: the longer a stage, the more rows make a column.

Shapes: L layers, E experts, C columns of time.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from launcher.tracking.metrics_log import expert_loads

COLUMNS = 256
# Of `router/load`: the side of a cell.
CELL_PIXELS = 24
# Of `router/LAYER/load`: a column of time, and the row of an expert.
COLUMN_PIXELS = 2
ROW_PIXELS = 12
# The columns that `router/load` is the mean of.
RECENT_COLUMNS = 8
# Load, then red, green and blue there.
_SCALE = np.array(
    [
        [0.0, 33, 102, 172],
        [0.5, 146, 197, 222],
        [1.0, 247, 247, 247],
        [1.5, 244, 165, 130],
        [2.0, 178, 24, 43],
    ]
)


class RouterMaps:
    """Collects the loads of rows in ascending order of steps; an earlier attempt's rows may be handed in."""

    def __init__(self, past: Iterable[dict[str, Any]] = ()) -> None:
        self.step = -1
        self._layers: dict[str, _History] = {}
        self._has_new_loads = False
        for row in past:
            self.add(row)
        # The attempt that wrote them has drawn them.
        self._has_new_loads = False

    def add(self, row: dict[str, Any]) -> bool:
        """Take a row; True when it is a validation and there are loads since the last images."""
        # Other rows of a step may be among the past ones already.
        if row["step"] > self.step:
            for layer, load in expert_loads(row):
                history = self._layers.setdefault(layer, _History())
                history.add(np.asarray(load, np.float32) * len(load))
                self._has_new_loads = True
                self.step = row["step"]
        return "validation/loss" in row and self._has_new_loads

    def has_new_loads(self) -> bool:
        """Whether there are loads since the last images."""
        return self._has_new_loads

    def images(self) -> dict[str, np.ndarray]:
        """The images by name, uint8 [height, width, 3]: experts from left to right in `router/load`, layers downwards;
        time from left to right in `router/LAYER/load`, experts downwards."""
        self._has_new_loads = False
        layers = sorted(self._layers.items())
        recent = [history.recent() for _, history in layers]
        # Layers may have different numbers of experts; what a layer lacks is black.
        num_experts = max(map(len, recent))
        load_LE = np.full((len(recent), num_experts), np.nan)
        for layer, load_E in enumerate(recent):
            load_LE[layer, : len(load_E)] = load_E
        images = {"router/load": paint(load_LE, CELL_PIXELS, CELL_PIXELS)}
        for name, history in layers:
            images[f"router/{name}/load"] = paint(history.columns(), ROW_PIXELS, COLUMN_PIXELS)
        return images


class _History:
    """The loads of one layer, in columns that are each the mean of `stride` rows."""

    def __init__(self) -> None:
        self._closed: list[np.ndarray] = []
        self._open: list[np.ndarray] = []
        self._stride = 1

    def add(self, load_E: np.ndarray) -> None:
        self._open.append(load_E)
        if len(self._open) == self._stride:
            self._closed.append(np.mean(self._open, axis=0))
            self._open = []
        # A full row of columns is halved, so that time always spans between half of them and all.
        if len(self._closed) == COLUMNS:
            pairs = zip(self._closed[::2], self._closed[1::2], strict=True)
            self._closed = [np.mean(pair, axis=0) for pair in pairs]
            self._stride *= 2

    def columns(self) -> np.ndarray:
        """Mean loads [E, C]."""
        columns = list(self._closed)
        if self._open:
            columns.append(np.mean(self._open, axis=0))
        return np.stack(columns, axis=1)

    def recent(self) -> np.ndarray:
        """Mean load [E] over the last columns."""
        return self.columns()[:, -RECENT_COLUMNS:].mean(axis=1)


def paint(load: np.ndarray, height: int, width: int) -> np.ndarray:
    """Colours of loads [rows, columns], each `height` by `width` pixels; uint8 [rows * height, columns * width, 3].

    What is not a number is black.
    """
    red = np.interp(load, _SCALE[:, 0], _SCALE[:, 1])
    green = np.interp(load, _SCALE[:, 0], _SCALE[:, 2])
    blue = np.interp(load, _SCALE[:, 0], _SCALE[:, 3])
    colours = np.stack([red, green, blue], axis=-1)
    colours[np.isnan(load)] = 0
    colours = colours.astype(np.uint8)
    return colours.repeat(height, axis=0).repeat(width, axis=1)
