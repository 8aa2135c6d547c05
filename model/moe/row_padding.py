"""Which rows of a matrix, sorted by expert, each expert multiplies with.

A CPU's library compiles a kernel for every shape of a bf16 product that it has not met lately, which takes as long as
several such products, and an expert seldom gets as many frames as a moment ago. So its bf16 products have a few rows
more there, and few shapes occur. The rows are those of the experts after it: it writes to them before they do, and
zeros keep them out of what is added up over rows.

Shapes: M rows, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

LEAST_STEP = 16


@dataclass(frozen=True)
class ExpertRows:
    """The frames of an expert, which lie side by side, and the rows from the first of them on that it multiplies."""

    start: int
    frames: int
    rows: int

    def of(self, x_MD: Tensor) -> Tensor:
        """Its rows [rows, D], zero past the end of the matrix; a view where they end within it."""
        missing = self.start + self.rows - len(x_MD)
        if missing <= 0:
            return x_MD[self.start : self.start + self.rows]
        return torch.cat((x_MD[self.start :], x_MD.new_zeros(missing, x_MD.shape[1])))

    def clear_others(self, rows: Tensor) -> None:
        """Set to zero what is not of its frames, in place."""
        if self.frames < self.rows:
            rows[self.frames :] = 0


def expert_rows(counts: Sequence[int], like: Tensor) -> list[ExpertRows]:
    """Of each expert, by how many frames it gets; `like` is on the device and of the dtype of the products."""
    starts, grows = accumulate(counts[:-1], initial=0), like.device.type == "cpu" and like.dtype == torch.bfloat16
    return [
        ExpertRows(start, count, pad_to_bucket(count) if grows else count)
        for start, count in zip(starts, counts, strict=True)
    ]


def pad_to_bucket(rows: int) -> int:
    """As many rows or more: multiples of 16 and, from 512 on, at most a sixteenth more, sixteen numbers per octave."""
    step = max(LEAST_STEP, 1 << rows.bit_length() >> 5)
    return -(-rows // step) * step
