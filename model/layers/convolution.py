"""The convolution module of a conformer block (Gulati et al., 2020, figure 2).

Shapes: B batch, T frames, D model width, N packed valid frames.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional, grad

from model.adapters import BlockAdapters
from model.layers.batch_norm import FrameBatchNorm
from model.layers.depthwise import BlockKernel, LayerKernel, OwnedBias, ViewConfig, ViewKernels, ViewMixture
from model.layers.packing import Packing
from model.layers.silu_linear import SiluLinear
from model.layers.streaming_cache import LayerCache


class ConvolutionModule(nn.Module):
    """Gated pointwise, depthwise over time, norm, SiLU, pointwise. The norm is handed in: it belongs to the layer.

    `causal`: the depthwise convolution sees no later frames. `depthwise_bias` is for a norm that leaves it an effect:
    before BatchNorm its gradient is nothing but rounding, which Adam would make whole steps of. With `views`, or where
    layers own the kernels, each layer hands in what makes its kernel.
    """

    def __init__(
        self,
        width: int,
        kernel_size: int,
        causal: bool = False,
        depthwise_bias: bool = True,
        views: tuple[ViewConfig, ...] = (),
        layers_own_kernels: bool = False,
    ):
        super().__init__()
        if causal:
            self.left_frames = kernel_size - 1
            padding = 0
        else:
            self.left_frames = 0
            padding = kernel_size // 2
        # Packed utterances lie one after the other: so many zeros between them keep the convolution from mixing two.
        self.gap = self.left_frames or kernel_size // 2
        self.gated = nn.Linear(width, 2 * width)
        # A two-dimensional convolution of height 1: frames [B, T, D] are its channels-last input without a copy, and
        # its kernel is several times faster on CPUs than the one-dimensional one.
        self.padding = padding
        if views:
            self.depthwise = ViewKernels(width, kernel_size, views, causal, depthwise_bias)
        elif layers_own_kernels:
            self.depthwise = OwnedBias(width, kernel_size, depthwise_bias)
        else:
            self.depthwise = BlockKernel(width, kernel_size, padding, depthwise_bias)
        self.output = SiluLinear(width, width)

    def forward(
        self,
        x_ND: Tensor,
        packing: Packing,
        norm: nn.Module,
        cache: LayerCache | None = None,
        adapters: BlockAdapters | None = None,
        kernel: ViewMixture | LayerKernel | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Packed frames [N, D] to [N, D] and, of BatchNorm in training, their moments. `kernel` is the layer's own part
        in its depthwise kernel, if it has one.

        Padding counts as silence for its neighbours. `cache`, of a causal convolution, holds the frames before.
        """
        gated_ND = self.gated(x_ND)
        if adapters is not None:
            gated_ND = adapters.add("gated", gated_ND, x_ND)
        x_ND = functional.glu(gated_ND, dim=-1)
        if cache is not None:
            # A stream is one utterance: nothing lies between rows.
            x_BTD = packing.pad(x_ND)
            x_BTD = cache.prepend_context(x_BTD, self.left_frames)
            x_BTD = self._convolve(x_BTD, kernel)
            x_ND = packing.pack(x_BTD)
        else:
            x_BTD = packing.pad_between(x_ND, self.gap)
            if self.left_frames:
                x_BTD = functional.pad(x_BTD, (0, 0, self.left_frames, 0))
            x_BTD = self._convolve(x_BTD, kernel)
            x_ND = packing.unpad_between(x_BTD, self.gap)

        moments = None
        if isinstance(norm, FrameBatchNorm):
            x_ND, moments = norm(x_ND)
        else:
            x_ND = norm(x_ND)
        output_ND = self.output(x_ND)
        if adapters is not None:
            output_ND = adapters.add("convolution_output", output_ND, x_ND)
        return output_ND, moments

    def _convolve(self, x_BTD: Tensor, kernel: ViewMixture | LayerKernel | None) -> Tensor:
        """The depthwise convolution over time."""
        # The function below is for the gradient on CPUs alone.
        with_own_gradient = x_BTD.device.type == "cpu" and torch.is_grad_enabled()
        if isinstance(self.depthwise, BlockKernel):
            if not with_own_gradient:
                image = self.depthwise(_as_image(x_BTD))
                return _as_frames(image)
            weight = self.depthwise.weight
        elif isinstance(self.depthwise, ViewKernels):
            assert isinstance(kernel, ViewMixture)
            weight = kernel(self.depthwise())
        else:
            assert isinstance(kernel, LayerKernel)
            weight = kernel()

        # As autocast converts the weights of a module; here it would not see them.
        weight = weight.to(x_BTD.dtype)
        bias = self.depthwise.bias
        if bias is not None:
            bias = bias.to(x_BTD.dtype)
        if with_own_gradient:
            return _Depthwise.apply(x_BTD, weight, bias, self.padding)
        image = functional.conv2d(_as_image(x_BTD), weight, bias, padding=(0, self.padding), groups=len(weight))
        return _as_frames(image)


class _Depthwise(torch.autograd.Function):
    """The convolution with a gradient of its weights that is computed tap by tap.

    On CPUs that takes a quarter of the time of the library's.
    """

    @staticmethod
    def forward(
        context,
        x_BTD: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        padding: int,
    ) -> Tensor:  # pyright: ignore
        context.save_for_backward(x_BTD, weight)
        context.padding = padding
        context.has_bias = bias is not None
        image = _as_image(x_BTD)
        output = functional.conv2d(
            image,
            weight,
            bias,
            padding=(0, padding),
            groups=len(weight),
        )
        return _as_frames(output)

    @staticmethod
    @once_differentiable
    def backward(context, gradient_BTD: Tensor):  # pyright: ignore
        x_BTD, weight = context.saved_tensors
        batch, frames, width = x_BTD.shape
        padding = context.padding

        grad_x = grad.conv2d_input(
            (batch, width, 1, frames),
            weight,
            _as_image(gradient_BTD),
            padding=(0, padding),  # pyright: ignore
            groups=width,
        )

        # Tap k of a channel multiplies frame t + k of the padded input into frame t of the output: its gradient is the
        # sum over t of their product.
        padded_BTD = x_BTD
        if padding:
            padded_BTD = functional.pad(x_BTD, (0, 0, padding, padding))
        out_frames = gradient_BTD.shape[1]
        taps = []
        for tap in range(weight.shape[-1]):
            inputs_BTD = padded_BTD[:, tap : tap + out_frames]
            products_BTD = inputs_BTD * gradient_BTD
            taps.append(products_BTD.sum((0, 1)))
        grad_weight = torch.stack(taps, dim=-1).view_as(weight)

        grad_bias = None
        if context.has_bias:
            grad_bias = gradient_BTD.sum((0, 1))
        return _as_frames(grad_x), grad_weight, grad_bias, None


def _as_image(x_BTD: Tensor) -> Tensor:
    """Frames as an image of height 1, its channels last: [B, D, 1, T] without a copy."""
    return x_BTD.unsqueeze(1).permute(0, 3, 1, 2)


def _as_frames(x_BD1T: Tensor) -> Tensor:
    """Undo `_as_image`."""
    return x_BD1T.permute(0, 2, 3, 1).squeeze(1)
