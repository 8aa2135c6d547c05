"""Valid frames without the padding between them.

What treats every frame by itself, which are most of a layer's operations, works on packed frames. What looks at a few
neighbours needs as many zeros between utterances, and only what looks further needs the padded batch, in which padding
is zero.

Shapes: B batch, T frames, D width, N packed valid frames.
"""

from functools import cached_property

import torch
from torch import Tensor

from model.layers.permute_rows import gather_unique, scatter_unique


class Packing:
    """Where the valid frames of a batch are; `valid_BT` is True at them."""

    def __init__(self, valid_BT: Tensor):
        self.shape, self._valid_BT = valid_BT.shape, valid_BT
        self.index_N = valid_BT.flatten().nonzero().squeeze(1)
        self.padded = len(self.index_N) < valid_BT.numel()
        self._places: dict[int, Tensor] = {}

    @cached_property
    def rows(self) -> Tensor:
        """[N]: the row of the batch that each packed frame comes from."""
        return self.index_N // self.shape[1]

    @cached_property
    def columns(self) -> Tensor:
        """[N]: the frame of its row that each packed frame is."""
        return self.index_N % self.shape[1]

    @cached_property
    def lengths(self) -> list[int]:
        """The valid frames of each row."""
        return self._valid_BT.sum(1).tolist()

    @cached_property
    def uneven(self) -> bool:
        """Whether pairs of frames, as attention compares them, are to a fifth or more padding."""
        return 0 < sum(length**2 for length in self.lengths) < 0.8 * self.shape[0] * self.shape[1] ** 2

    def pack(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [N, D]; a view where nothing is padded."""
        x_MD = x_BTD.flatten(0, 1)
        return gather_unique(x_MD, self.index_N) if self.padded else x_MD

    def pad(self, x_ND: Tensor) -> Tensor:
        """[N, D] to [B, T, D], zero at padding; a view where nothing is padded."""
        batch, frames = self.shape
        x_MD = scatter_unique(x_ND, self.index_N, batch * frames) if self.padded else x_ND
        return x_MD.view(batch, frames, -1)

    def space(self, x_ND: Tensor, gap: int) -> Tensor:
        """[N, D] to frames for what looks no further than `gap` of them: all rows in one, [1, N + B gap, D], with `gap`
        zeros after each. Where nothing is padded, the batch [B, T, D], which is a view."""
        if not self.padded:
            return self.pad(x_ND)
        return scatter_unique(x_ND, self._spaced(gap), len(x_ND) + gap * self.shape[0])[None]

    def unspace(self, x: Tensor, gap: int) -> Tensor:
        """Undo `space`: to [N, D]."""
        return gather_unique(x[0], self._spaced(gap)) if self.padded else self.pack(x)

    def _spaced(self, gap: int) -> Tensor:
        """[N]: where `space` puts each packed frame, found once for all layers."""
        if gap not in self._places:
            self._places[gap] = torch.arange(len(self.rows), device=self.rows.device) + gap * self.rows
        return self._places[gap]
