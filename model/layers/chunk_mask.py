"""Attention in chunks, so that an encoder can run while somebody is still speaking.

A frame attends to its own chunk and to `left_chunks` chunks before it, never to a later one. One model learns to work
with any chunk size by dynamic chunk training (Zhang et al., U2, 2020, section 3.2).

Shapes: S encoder frames.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor


@dataclass(frozen=True)
class ChunkMask:
    """`frames` encoder frames per chunk, and how many chunks before a frame's own it attends to (None: all)."""

    frames: int
    left_chunks: int | None = None

    def __post_init__(self):
        if self.frames < 1:
            raise ValueError(f"a chunk of {self.frames} frames cannot be attended to: choose 1 or more")
        if self.left_chunks is not None and self.left_chunks < 0:
            raise ValueError(f"left_chunks is {self.left_chunks}: choose 0 or more, or None for all")

    @property
    def left_frames(self) -> int | None:
        """The frames before a chunk that it attends to; None for all."""
        if self.left_chunks is None:
            return None
        return self.left_chunks * self.frames

    def mask(self, num_frames: int, device: torch.device) -> Tensor:
        """[S, S] bool, True where a frame (row) attends to a frame (column)."""
        chunk_S = torch.arange(num_frames, device=device) // self.frames
        chunks_behind_SS = chunk_S[:, None] - chunk_S
        mask_SS = chunks_behind_SS >= 0
        if self.left_chunks is not None:
            mask_SS = mask_SS & (chunks_behind_SS <= self.left_chunks)
        return mask_SS


class ChunksConfig(BaseModel, frozen=True, extra="forbid"):
    max_frames: int = Field(
        default=25,
        ge=1,
        le=10**6,
        description="largest chunk drawn while training, in encoder frames",
    )
    full_context: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of lanes that train with full context",
    )
    left: Literal["full", "drawn"] = Field(
        default="full", description="chunks before a frame's own that it attends to: all, or a drawn number"
    )

    def draw(self, num_frames: int) -> ChunkMask | None:
        """A lane's chunk from torch's generator on the CPU: none (full context), or 1 to `max_frames` frames.

        On the CPU whatever the device is, so that a lane draws the same chunk wherever it runs.
        """
        if float(torch.rand((), device="cpu")) < self.full_context:
            return None
        frames = _draw_integer(1, self.max_frames)
        left_chunks = None
        if self.left == "drawn":
            # As many as lie before the last chunk: with more, every frame would attend to all before it.
            max_left_chunks = (num_frames - 1) // frames
            left_chunks = _draw_integer(0, max_left_chunks)
        return ChunkMask(frames, left_chunks)


def _draw_integer(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), device="cpu"))
