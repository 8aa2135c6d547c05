"""Which rows of a matrix, sorted by expert, each expert multiplies.

oneDNN, which multiplies bf16 matrices on CPUs, compiles a kernel for every shape of a product and holds the last ones
in its primitive cache. Compiling takes as long as several such products, and an expert seldom gets as many frames as it
did before. So an expert's bf16 products have a few rows more there: pad_to_bucket leaves few shapes, which stay cached.

The padding rows are not zeros that somebody has to append: they are rows of the experts behind it. An expert may write
to them, because the experts are computed in order and each overwrites its own rows afterwards. Where rows are added up,
`zero_padding` clears them first.

Shapes: M rows sorted by expert, R rows that one expert multiplies, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_STEP = 16


@dataclass(frozen=True)
class ExpertRows:
    """Rows `start` to `start + num_rows` of a matrix, of which the first `num_frames` are an expert's own frames."""

    start: int
    num_frames: int
    num_rows: int

    @property
    def end(self) -> int:
        """The row after the last."""
        return self.start + self.num_rows

    def select(self, x_MD: Tensor) -> Tensor:
        """The rows [R, D]: a view, or a copy with zeros past the end of the matrix."""
        num_missing = self.end - len(x_MD)
        if num_missing <= 0:
            return x_MD[self.start : self.end]
        zeros = x_MD.new_zeros(num_missing, x_MD.shape[1])
        return torch.cat((x_MD[self.start :], zeros))

    def zero_padding(self, rows_RD: Tensor) -> None:
        """Set the rows after the expert's own frames to zero, in place."""
        if self.num_frames < self.num_rows:
            rows_RD[self.num_frames :] = 0


def expert_rows(counts: Sequence[int], like: Tensor) -> list[ExpertRows]:
    """The rows of each expert, given its number of frames; `like` has the device and dtype of the products."""
    # Only bf16 products on CPUs are compiled for their shape: elsewhere more rows would be work for nothing.
    pads = like.device.type == "cpu" and like.dtype == torch.bfloat16
    rows = []
    start = 0
    for count in counts:
        num_rows = count
        if pads:
            num_rows = pad_to_bucket(count)
        rows.append(ExpertRows(start, count, num_rows))
        start += count
    return rows


def pad_to_bucket(rows: int) -> int:
    """The next larger size in use: multiples of 16 and, from 512 rows on, sixteen sizes per octave.

    From 512 rows on at most a sixteenth is added.
    """
    # The octave of a number of b bits holds 2^(b - 1) numbers; a sixteenth of them is 2^(b - 5).
    sixteenth_of_octave = 1 << rows.bit_length() >> 5
    step = max(MIN_STEP, sixteenth_of_octave)
    num_steps = -(-rows // step)  # rounded up
    return num_steps * step
