"""The front-end of the encoder: strided convolutions turn features into frames `factor` times as long.

Frame s is made of features factor (s - 1) + 1 to factor (s + 1) - 1 and of no later ones, so that a piece of
`factor` n features is enough for n frames: there is no look-ahead beyond a frame's own features.

Shapes: B batch, T feature frames, S frames after subsampling, F mel bins, C channels, I = C times the bins that remain,
D model width.
"""

from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

# The strides that make each factor, over time and frequency alike.
STRIDES = {4: (2, 2), 6: (2, 3), 8: (2, 2, 2)}


class SubsamplingConfig(BaseModel, frozen=True, extra="forbid"):
    channels: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="channels of the strided convolutions",
    )
    factor: Literal[4, 6, 8] = Field(
        default=4,
        description="feature frames that become one encoder frame",
    )
    convolutions: Literal["separable", "full"] = Field(
        default="full",
        description="full: every convolution sees all channels, as in most conformers; separable: after the first, "
        "each channel is convolved alone and then all are mixed",
    )


class ConvolutionSubsampling(nn.Module):
    """Strided convolutions over time and frequency, then one projection to the model width.

    All but the first are full, or depthwise-separable, which has a ninth of the multiplications and is no faster on a
    CPU unless channels are many. Frames beyond a length are zeroed after each convolution, so that padding never leaks
    into valid frames.
    """

    def __init__(
        self,
        config: SubsamplingConfig,
        mel_bins: int,
        width: int,
    ):
        super().__init__()
        channels = config.channels
        self.factor = config.factor
        self.strides = STRIDES[config.factor]
        first_stride, *further_strides = self.strides
        # Features are an image of one channel.
        self.first = _strided(1, channels, first_stride)
        self.further = nn.ModuleList()
        for stride in further_strides:
            if config.convolutions == "full":
                convolution = _strided(channels, channels, stride)
            else:
                depthwise = _strided(channels, channels, stride, groups=channels)
                pointwise = nn.Conv2d(channels, channels, kernel_size=1)
                convolution = nn.Sequential(depthwise, pointwise)
            self.further.append(convolution)
        remaining_bins = output_length(mel_bins, self.factor)
        self.projection = nn.Linear(channels * remaining_bins, width)

    def forward(
        self,
        features_BTF: Tensor,
        lengths_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Features and their valid lengths to (frames [B, S, D], valid lengths [B])."""
        first_stride, *further_strides = self.strides
        features_B1TF = features_BTF.unsqueeze(1)
        lengths_B = output_length(lengths_B, first_stride)
        x_BCSF = torch.relu(self.first(features_B1TF))

        for convolution, stride in zip(self.further, further_strides, strict=True):
            # Biases made padded frames other than zero; the next convolution would carry them into valid ones.
            num_frames = x_BCSF.shape[2]
            valid_BS = valid_mask(lengths_B, num_frames)
            x_BCSF = x_BCSF * valid_BS[:, None, :, None]
            lengths_B = output_length(lengths_B, stride)
            x_BCSF = torch.relu(convolution(x_BCSF))

        x_BSI = x_BCSF.transpose(1, 2).flatten(2)
        return self.projection(x_BSI), lengths_B


def output_length(length, factor: int):
    """Frames (or frequency bins) that remain of `length`: an int, an integer array or an integer tensor."""
    return (length + factor - 1) // factor


def valid_mask(lengths_B: Tensor, num_frames: int) -> Tensor:
    """[B, num_frames] bool, True where a frame is valid."""
    frames_S = torch.arange(num_frames, device=lengths_B.device)
    return frames_S < lengths_B[:, None]


def _strided(
    inputs: int,
    outputs: int,
    stride: int,
    groups: int = 1,
) -> nn.Conv2d:
    """A convolution whose neighbouring outputs overlap by all but one input, and which keeps ceil(length / stride)."""
    kernel_size = 2 * stride - 1
    # With padding on the left as wide as the overlap, frame s ends with the last of its own features: no look-ahead.
    overlap = stride - 1
    return nn.Conv2d(
        inputs,
        outputs,
        kernel_size,
        stride,
        padding=overlap,
        groups=groups,
    )
