"""The front-end as a part of a graph: waveforms to normalised features by one convolution, without a Fourier transform.

Window, removal of the offset, preemphasis and transform are linear in a frame's samples: together they are a matrix
[2 N, W], which a convolution applies to every frame.

Shapes: B batch, S samples, W samples of a window, N frequencies, T frames, F mel bins.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.features import PREEMPHASIS, FeaturesConfig


class GraphFrontEnd(nn.Module):
    """Waveforms [B, S] to features [B, T, F], those of `data.features.LogMel` to rounding."""

    transform: Tensor
    filters: Tensor
    mean_F: Tensor
    std_F: Tensor

    def __init__(self, config: FeaturesConfig, mean: list[float], std: list[float]):
        super().__init__()
        self.config = config
        self.register_buffer("transform", _transform(config).unsqueeze(1))
        self.register_buffer("filters", config.mel_filters().t().unsqueeze(2).contiguous())
        self.register_buffer("mean_F", torch.tensor(mean))
        self.register_buffer("std_F", torch.tensor(std))

    def forward(self, waveforms_BS: Tensor) -> Tensor:
        spectrum_BCT = functional.conv1d(waveforms_BS.unsqueeze(1), self.transform, stride=self.config.hop_samples)
        real_BNT, imaginary_BNT = spectrum_BCT.chunk(2, dim=1)
        power_BNT = real_BNT.square() + imaginary_BNT.square()
        # A convolution too: int8 forms of the graph have other products in int8, which power is too uneven for.
        power_BFT = functional.conv1d(power_BNT, self.filters)
        power_BTF = power_BFT.transpose(1, 2)
        if self.config.kind == "kaldi":
            features_BTF = power_BTF.clamp(min=self.config.floor).log()
        else:
            features_BTF = (power_BTF + self.config.floor).log()
        return (features_BTF - self.mean_F) / self.std_F


def _transform(config: FeaturesConfig) -> Tensor:
    """What a frame's samples are multiplied with: the real parts of all frequencies and then the imaginary ones."""
    window_samples = config.window_samples
    frequencies_N = torch.arange(config.fft_size // 2 + 1, dtype=torch.float64)
    samples_W = torch.arange(window_samples, dtype=torch.float64)
    angles_NW = 2 * math.pi / config.fft_size * frequencies_N[:, None] * samples_W
    transform = torch.cat((angles_NW.cos(), -angles_NW.sin()))
    transform = transform * config.window().double()
    if config.kind == "kaldi":
        # Of the steps of a frame the last is the first to be multiplied.
        emphasis_WW = torch.eye(window_samples, dtype=torch.float64)
        emphasis_WW[range(1, window_samples), range(window_samples - 1)] = -PREEMPHASIS
        emphasis_WW[0, 0] = 1 - PREEMPHASIS
        centring_WW = torch.eye(window_samples, dtype=torch.float64) - 1 / window_samples
        transform = transform @ emphasis_WW @ centring_WW
    return transform.float()
