"""Valid frames without the padding between them.

Most of a layer's operations treat every frame by itself: they work on packed frames. A convolution looks at a few
neighbours: it needs as many zeros between utterances. Only what looks further needs the padded batch, in which padding
is zero.

Shapes: B batch, T frames, D width, N packed valid frames.
"""

from functools import cached_property

import torch
from torch import Tensor

from model.layers.permute_rows import gather_unique, scatter_unique

# A batch is uneven when at most this share of its pairs of frames is valid.
UNEVEN_SHARE = 0.8


class Packing:
    """Where the valid frames of a batch are; `valid_BT` is True at them."""

    def __init__(self, valid_BT: Tensor):
        self.shape = valid_BT.shape
        valid_M = valid_BT.flatten()
        # The host waits here for the device to tell how many frames there are: once per batch, not once per layer.
        self.index_N = valid_M.nonzero().squeeze(1)
        self.padded = len(self.index_N) < len(valid_M)
        self._valid_BT = valid_BT
        self._padded_index: dict[int, Tensor] = {}

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
        """Whether a fifth or more of the pairs of frames, which attention compares, are padding."""
        batch, frames = self.shape
        valid_pairs = sum(length**2 for length in self.lengths)
        most_pairs = UNEVEN_SHARE * batch * frames**2
        return 0 < valid_pairs < most_pairs

    def pack(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [N, D]; a view where nothing is padded."""
        x_MD = x_BTD.flatten(0, 1)
        if not self.padded:
            return x_MD
        return gather_unique(x_MD, self.index_N)

    def pad(self, x_ND: Tensor) -> Tensor:
        """[N, D] to [B, T, D], zero at padding; a view where nothing is padded."""
        batch, frames = self.shape
        if self.padded:
            x_ND = scatter_unique(x_ND, self.index_N, batch * frames)
        return x_ND.view(batch, frames, -1)

    def pad_between(self, x_ND: Tensor, gap: int) -> Tensor:
        """[N, D] to frames for an operation that looks no further than `gap` of them.

        All rows in one, [1, N + B gap, D], with `gap` zeros after each. Where nothing is padded it is the batch
        [B, T, D], which is a view.
        """
        if not self.padded:
            return self.pad(x_ND)
        batch, _ = self.shape
        num_rows = len(x_ND) + gap * batch
        x_MD = scatter_unique(x_ND, self._index_between(gap), num_rows)
        return x_MD[None]

    def unpad_between(self, x: Tensor, gap: int) -> Tensor:
        """Undo `pad_between`: to [N, D]."""
        if not self.padded:
            return self.pack(x)
        x_MD = x[0]
        return gather_unique(x_MD, self._index_between(gap))

    def _index_between(self, gap: int) -> Tensor:
        """[N]: the row where `pad_between` puts each packed frame, computed once for all layers."""
        if gap not in self._padded_index:
            num_frames = len(self.rows)
            packed_N = torch.arange(num_frames, device=self.rows.device)
            # Before a frame of row b of the batch lie the gaps after b rows.
            self._padded_index[gap] = packed_N + gap * self.rows
        return self._padded_index[gap]
