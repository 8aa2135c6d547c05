"""The front of the encoder: two strided convolutions turn features into frames four times as long.

Shapes: B batch, T feature frames, S frames after subsampling, F mel bins, C channels, D model width.
"""

from typing import TypeVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

Length = TypeVar("Length", int, Tensor, "object")

KERNEL, STRIDE, STAGES = 3, 2, 2


class SubsamplingConfig(BaseModel, frozen=True, extra="forbid"):
    channels: int = Field(default=32, ge=1, description="channels of the two strided convolutions")


class ConvolutionSubsampling(nn.Module):
    """Two 3x3 convolutions of stride 2 over time and frequency, then one projection to the model width.

    The second convolution is depthwise-separable, which costs a ninth of a full one. Frames beyond a length are zeroed
    after each convolution, so that padding never leaks into valid frames.
    """

    factor = STRIDE**STAGES

    def __init__(self, config: SubsamplingConfig, mel_bins: int, width: int):
        super().__init__()
        channels = config.channels
        self.first = nn.Conv2d(1, channels, KERNEL, STRIDE, padding=1)
        self.depthwise = nn.Conv2d(channels, channels, KERNEL, STRIDE, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.projection = nn.Linear(channels * output_length(mel_bins), width)

    def forward(self, features_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Features and their valid lengths to (frames [B, S, D], valid lengths [B])."""
        lengths_B = _halve(lengths_B)
        x_BCTF = torch.relu(self.first(features_BTF.unsqueeze(1)))
        x_BCTF = x_BCTF * valid_mask(lengths_B, x_BCTF.shape[2])[:, None, :, None]
        lengths_B = _halve(lengths_B)
        x_BCSF = torch.relu(self.pointwise(self.depthwise(x_BCTF)))
        return self.projection(x_BCSF.transpose(1, 2).flatten(2)), lengths_B


def output_length(length):
    """Frames (or frequency bins) that remain of `length`: an int, an integer array or an integer tensor."""
    for _ in range(STAGES):
        length = _halve(length)
    return length


def valid_mask(lengths_B: Tensor, num_frames: int) -> Tensor:
    """[B, num_frames] bool, True where a frame is valid."""
    return torch.arange(num_frames, device=lengths_B.device) < lengths_B[:, None]


def _halve(length):
    return (length + 1) // STRIDE
