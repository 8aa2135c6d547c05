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
CELL_PIXELS, COLUMN_PIXELS, ROW_PIXELS = 24, 2, 12
RECENT_COLUMNS = 8
# Load, then red, green and blue there.
_SCALE = np.array(
    [[0.0, 33, 102, 172], [0.5, 146, 197, 222], [1, 247, 247, 247], [1.5, 244, 165, 130], [2, 178, 24, 43]]
)


class RouterMaps:
    """Collects the loads of rows in ascending order of steps; an earlier attempt's rows may be handed in."""

    def __init__(self, past: Iterable[dict[str, Any]] = ()) -> None:
        self.step = -1
        self._layers: dict[str, _History] = {}
        self._fresh = False
        for row in past:
            self.look(row)
        self._fresh = False

    def look(self, row: dict[str, Any]) -> bool:
        """Take a row; True when it is a validation and there are loads since the last images."""
        if row["step"] > self.step:
            for layer, load in expert_loads(row):
                self._layers.setdefault(layer, _History()).add(np.asarray(load, np.float32) * len(load))
                self._fresh, self.step = True, row["step"]
        return "validation/loss" in row and self.rest()

    def rest(self) -> bool:
        """Whether there are loads since the last images."""
        return self._fresh

    def images(self) -> dict[str, np.ndarray]:
        """The images by name, uint8 [height, width, 3]: experts from left to right in `router/load`, layers downwards;
        time from left to right in `router/LAYER/load`, experts downwards."""
        self._fresh = False
        recent = [history.recent() for _, history in sorted(self._layers.items())]
        widest = max(map(len, recent))
        load_LE = np.stack([np.pad(load_E, (0, widest - len(load_E)), constant_values=np.nan) for load_E in recent])
        images = {"router/load": paint(load_LE, CELL_PIXELS, CELL_PIXELS)}
        for name, history in sorted(self._layers.items()):
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
        if len(self._closed) == COLUMNS:
            self._closed = [np.mean(pair, axis=0) for pair in zip(self._closed[::2], self._closed[1::2], strict=True)]
            self._stride *= 2

    def columns(self) -> np.ndarray:
        """Mean loads [E, C]."""
        rest = [np.mean(self._open, axis=0)] if self._open else []
        return np.stack([*self._closed, *rest], axis=1)

    def recent(self) -> np.ndarray:
        """Mean load [E] over the last columns."""
        return self.columns()[:, -RECENT_COLUMNS:].mean(axis=1)


def paint(load: np.ndarray, height: int, width: int) -> np.ndarray:
    """Colours of loads [rows, columns], each `height` by `width` pixels; uint8 [rows * height, columns * width, 3].

    What is not a number is black.
    """
    channels = [np.interp(load, _SCALE[:, 0], _SCALE[:, channel]) for channel in (1, 2, 3)]
    colours = np.where(np.isnan(load)[..., None], 0, np.stack(channels, axis=-1)).astype(np.uint8)
    return colours.repeat(height, axis=0).repeat(width, axis=1)
