"""The kernels of the depthwise convolution: a block's one, several laid over each other, or one of each layer.

Several views (separable convolutions of different length and dilation, added up) are one kernel as soon as their
mixture is known, since a convolution is linear in it. So they cost one convolution, with a kernel that is put together
once per pass, and each layer may mix the views of a shared block in its own way.

Shapes: D channels, V views, K taps of the whole kernel.
"""

import math

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn


class ViewConfig(BaseModel, frozen=True, extra="forbid"):
    """One of several kernels over the same frames."""

    kernel_size: int = Field(ge=1, le=9999, description="taps of the kernel; odd")
    dilation: int = Field(default=1, ge=1, le=9999, description="frames from one tap to the next")

    @property
    def span(self) -> int:
        """Frames from its first tap to its last."""
        return self.dilation * (self.kernel_size - 1) + 1


class BlockKernel(nn.Conv2d):
    """The one kernel of a block, the same for all of its layers. It is a convolution over images of height 1."""

    def __init__(self, width: int, kernel_size: int, padding: int, bias: bool):
        super().__init__(width, width, (1, kernel_size), padding=(0, padding), groups=width, bias=bias)


class ViewKernels(nn.Module):
    """Several kernels of a block. Each stands in the middle of the whole kernel or, where it is causal, at its end."""

    def __init__(self, width: int, kernel_size: int, views: tuple[ViewConfig, ...], causal: bool, bias: bool):
        super().__init__()
        self.kernel_size = kernel_size
        self.first_taps = []
        self.dilations = [view.dilation for view in views]
        self.taps = nn.ParameterList()
        for view in views:
            margin = kernel_size - view.span
            self.first_taps.append(margin if causal else margin // 2)
            # Drawn so that their sum has the variance of one kernel as PyTorch draws it.
            bound = 1 / math.sqrt(view.kernel_size * len(views))
            self.taps.append(nn.Parameter(torch.empty(width, view.kernel_size).uniform_(-bound, bound)))
        self.bias = None
        if bias:
            bound = 1 / math.sqrt(kernel_size)
            self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self) -> Tensor:
        """The views as kernels of the whole size, [V, D, K]."""
        kernels = []
        for taps_DK, first, dilation in zip(self.taps, self.first_taps, self.dilations, strict=True):
            kernel_DK = taps_DK.new_zeros(len(taps_DK), self.kernel_size)
            kernel_DK[:, first::dilation][:, : taps_DK.shape[1]] = taps_DK
            kernels.append(kernel_DK)
        return torch.stack(kernels)


class ViewMixture(nn.Module):
    """How much of each view a layer hears in each channel; all alike at the start."""

    def __init__(self, width: int, num_views: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_views, width))

    def forward(self, kernels_VDK: Tensor) -> Tensor:
        """The layer's kernel, [D, 1, 1, K]."""
        kernel_DK = torch.einsum("vd,vdk->dk", self.weight, kernels_VDK)
        return kernel_DK[:, None, None, :]


class OwnedBias(nn.Module):
    """What a block keeps of its convolution where each layer owns the kernel."""

    def __init__(self, width: int, kernel_size: int, bias: bool):
        super().__init__()
        self.bias = None
        if bias:
            bound = 1 / math.sqrt(kernel_size)
            self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))


class LayerKernel(nn.Module):
    """The kernel of one layer alone."""

    def __init__(self, width: int, kernel_size: int):
        super().__init__()
        bound = 1 / math.sqrt(kernel_size)
        self.weight = nn.Parameter(torch.empty(width, 1, 1, kernel_size).uniform_(-bound, bound))

    def forward(self) -> Tensor:
        """The kernel, [D, 1, 1, K]."""
        return self.weight
