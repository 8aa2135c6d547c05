"""What a layer keeps of the frames before a chunk, when an utterance comes piece by piece.

Shapes: B batch, H heads, T frames, K head width, D model width.
"""

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of up to `max_frames` frames (None: all), and the last inputs of the depthwise convolution.

    Keys are kept without their positions: those are counted from the oldest key that is kept, and so stay small
    however long an utterance is. One cache belongs to one layer, also where layers share a block.
    """

    def __init__(self, max_frames: int | None):
        self.max_frames = max_frames
        self._key: Tensor | None = None
        self._value: Tensor | None = None
        self._inputs: Tensor | None = None

    @property
    def num_frames(self) -> int:
        """The frames whose keys and values are kept."""
        if self._key is None:
            return 0
        return self._key.shape[2]

    def append_kv(
        self,
        key_BHTK: Tensor,
        value_BHTK: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The cached keys and values followed by a chunk's own; the newest of them are cached for the next chunk."""
        if self._key is not None and self._value is not None:
            key_BHTK = torch.cat((self._key, key_BHTK), dim=2)
            value_BHTK = torch.cat((self._value, value_BHTK), dim=2)

        first = 0
        if self.max_frames is not None:
            num_frames = key_BHTK.shape[2]
            first = max(0, num_frames - self.max_frames)
        # Copies: a view would keep the memory of the frames before it.
        self._key = key_BHTK[:, :, first:].clone()
        self._value = value_BHTK[:, :, first:].clone()
        return key_BHTK, value_BHTK

    def prepend_context(self, x_BTD: Tensor, num_frames: int) -> Tensor:
        """A chunk's frames with the `num_frames` before them in front, zeros where the utterance has none."""
        batch, chunk_frames, width = x_BTD.shape
        context_BTD = self._inputs
        if context_BTD is None:
            context_BTD = x_BTD.new_zeros(batch, num_frames, width)
        x_BTD = torch.cat((context_BTD, x_BTD), dim=1)
        # The last `num_frames`, counted from the front: `-num_frames` would keep everything where it is 0.
        self._inputs = x_BTD[:, chunk_frames:].clone()
        return x_BTD
