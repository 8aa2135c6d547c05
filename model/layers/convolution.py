"""The convolution module of a conformer block (Gulati et al., 2020, figure 2).

Shapes: B batch, T frames, D model width, N packed valid frames.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional, grad

from model.layers.batch_norm import FrameBatchNorm
from model.layers.packing import Packing
from model.layers.silu_linear import SiluLinear
from model.layers.streaming_cache import LayerCache


class ConvolutionModule(nn.Module):
    """Gated pointwise, depthwise over time, norm, SiLU, pointwise. The norm is handed in: it belongs to the layer.

    `causal`: the depthwise convolution sees no later frames. `depthwise_bias` is for a norm that leaves it an effect:
    before BatchNorm its gradient is nothing but rounding, which Adam would make whole steps of.
    """

    def __init__(self, width: int, kernel_size: int, causal: bool = False, depthwise_bias: bool = True):
        super().__init__()
        self.left_frames = kernel_size - 1 if causal else 0
        self.gap = self.left_frames or kernel_size // 2  # zeros that utterances need between them
        self.gated = nn.Linear(width, 2 * width)
        # A two-dimensional convolution of height 1: frames [B, T, D] are its channels-last input without a copy, and
        # its kernel is several times faster on CPUs than the one-dimensional one.
        padding = (0, 0 if causal else kernel_size // 2)
        self.depthwise = nn.Conv2d(width, width, (1, kernel_size), padding=padding, groups=width, bias=depthwise_bias)
        self.output = SiluLinear(width, width)

    def forward(
        self,
        x_ND: Tensor,
        packing: Packing,
        norm: nn.Module,
        past: LayerCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Packed frames [N, D] to [N, D] and, of BatchNorm in training, their moments.

        Padding counts as silence for its neighbours. `past`, of a causal convolution, holds the frames before.
        """
        x_ND, moments = self._mix(functional.glu(self.gated(x_ND), dim=-1), packing, past), None
        if isinstance(norm, FrameBatchNorm):
            x_ND, moments = norm(x_ND)
        else:
            x_ND = norm(x_ND)
        return self.output(x_ND), moments

    def _mix(self, x_ND: Tensor, packing: Packing, past: LayerCache | None) -> Tensor:
        """Each frame with its neighbours: those in the batch, or in it and the past."""
        if past is not None:
            return packing.pack(self._convolve(past.precede(packing.pad(x_ND), self.left_frames)))
        x_BTD = packing.space(x_ND, self.gap)
        if self.left_frames:
            x_BTD = functional.pad(x_BTD, (0, 0, self.left_frames, 0))
        return packing.unspace(self._convolve(x_BTD), self.gap)

    def _convolve(self, x_BTD: Tensor) -> Tensor:
        """The depthwise convolution over time."""
        if x_BTD.device.type != "cpu" or not torch.is_grad_enabled():
            return _as_frames(self.depthwise(_as_image(x_BTD)))
        bias = self.depthwise.bias
        # As autocast converts the weights of a module; here it would not see them.
        weight, bias = self.depthwise.weight.to(x_BTD.dtype), bias if bias is None else bias.to(x_BTD.dtype)
        return _Depthwise.apply(x_BTD, weight, bias, self.depthwise.padding[1])


class _Depthwise(torch.autograd.Function):
    """The convolution with a gradient of its weights that is computed tap by tap, which on CPUs takes a quarter of the
    time of the library's."""

    @staticmethod
    def forward(context, x_BTD: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:  # pyright: ignore
        context.save_for_backward(x_BTD, weight)
        context.padding, context.has_bias = padding, bias is not None
        return _as_frames(functional.conv2d(_as_image(x_BTD), weight, bias, padding=(0, padding), groups=len(weight)))

    @staticmethod
    @once_differentiable
    def backward(context, gradient_BTD: Tensor):  # pyright: ignore
        x_BTD, weight = context.saved_tensors
        (batch, frames, width), padding, out_frames = x_BTD.shape, context.padding, gradient_BTD.shape[1]
        size, of_y = (batch, width, 1, frames), _as_image(gradient_BTD)
        of_x = grad.conv2d_input(size, weight, of_y, padding=(0, padding), groups=width)  # pyright: ignore
        padded_BTD = functional.pad(x_BTD, (0, 0, padding, padding)) if padding else x_BTD
        taps = [(padded_BTD[:, tap : tap + out_frames] * gradient_BTD).sum((0, 1)) for tap in range(weight.shape[-1])]
        of_weight = torch.stack(taps, dim=-1).view_as(weight)
        return _as_frames(of_x), of_weight, gradient_BTD.sum((0, 1)) if context.has_bias else None, None


def _as_image(x_BTD: Tensor) -> Tensor:
    """Frames as an image of height 1, its channels last: [B, D, 1, T] without a copy."""
    return x_BTD.unsqueeze(1).permute(0, 3, 1, 2)


def _as_frames(x_BDHT: Tensor) -> Tensor:
    return x_BDHT.permute(0, 2, 3, 1).squeeze(1)
