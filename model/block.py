"""A conformer block, split into what a group shares and what a layer owns.

x += 1/2 FFN(norm x); x += attention(norm x); x += convolution(norm x); x += 1/2 FFN-or-experts(norm x); norm x
(Gulati et al., 2020, equation 1). The block holds every matrix; the layer holds the norms and the router, so that one
block can serve several depths (Bai et al., 2022). Dropout acts on what a module adds to the residual stream and nowhere
else: nothing random happens inside experts, so that a run does not depend on which process holds them.

Shapes: B batch, T frames, D model width, N packed valid frames.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.attention import SelfAttention
from model.convolution import ConvolutionModule
from model.experts import MixtureOfExperts
from model.feedforward import FeedForward
from model.router import ExpertsConfig, Router, Routing


@dataclass
class Frames:
    """What every layer needs to know about the frames of a batch.

    positions: rotary (cos, sin); valid_BT bool; index_N the positions of valid frames in the flattened [B T];
    padded: False when every frame is valid and masks can be left out.
    """

    positions: tuple[Tensor, Tensor]
    valid_BT: Tensor
    index_N: Tensor
    padded: bool

    def attention_mask(self) -> Tensor | None:
        """[B, 1, 1, T], True at keys that may be attended to; None when all may."""
        if not self.padded:
            return None
        # An empty utterance attends to its first (silent) frame: a row without any key would be undefined.
        attend_BT = self.valid_BT.clone()
        attend_BT[:, 0] = True
        return attend_BT[:, None, None, :]


class ConformerBlock(nn.Module):
    """The weights of a group: both feed-forward layers (the second may be experts), attention and convolution."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        kernel_size: int,
        dropout: float,
        experts: ExpertsConfig | None,
    ):
        super().__init__()
        self.feedforward1 = FeedForward(width, hidden)
        self.attention = SelfAttention(width, heads)
        self.convolution = ConvolutionModule(width, kernel_size)
        self.feedforward2 = MixtureOfExperts(experts.count, width, hidden) if experts else FeedForward(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, layer: "LayerParameters", frames: Frames) -> tuple[Tensor, Routing | None]:
        """One layer's pass through the block: frames [B, T, D] to [B, T, D], and how its router chose."""
        drop = self.dropout
        valid_BT1 = frames.valid_BT[..., None] if frames.padded else None
        x_BTD = x_BTD + 0.5 * drop(self.feedforward1(layer.feedforward1_norm(x_BTD)))
        attended = self.attention(layer.attention_norm(x_BTD), frames.positions, frames.attention_mask())
        x_BTD = x_BTD + drop(attended)
        convolved = self.convolution(layer.convolution_norm(x_BTD), valid_BT1, layer.convolution_inner_norm)
        x_BTD = x_BTD + drop(convolved)
        output, routing = self._second_feedforward(layer.feedforward2_norm(x_BTD), layer, frames)
        return layer.final_norm(x_BTD + 0.5 * drop(output)), routing

    def _second_feedforward(
        self, x_BTD: Tensor, layer: "LayerParameters", frames: Frames
    ) -> tuple[Tensor, Routing | None]:
        if layer.router is None:
            return self.feedforward2(x_BTD), None
        x_ND = x_BTD.flatten(0, 1)[frames.index_N]
        routing = layer.router(x_ND)
        # Experts multiply in the precision of the matrices around them, norms may have left fp32.
        x_ND = x_ND.to(_matrix_dtype(x_ND))
        y_ND = self.feedforward2(x_ND, routing)
        output = y_ND.new_zeros(x_BTD.shape[0] * x_BTD.shape[1], x_BTD.shape[2])
        return output.index_copy(0, frames.index_N, y_ND).view(x_BTD.shape), routing


class LayerParameters(nn.Module):
    """What a layer owns at its depth: five norms, the norm inside the convolution module, and a router."""

    def __init__(self, width: int, experts: ExpertsConfig | None):
        super().__init__()
        self.feedforward1_norm = nn.LayerNorm(width)
        self.attention_norm = nn.LayerNorm(width)
        self.convolution_norm = nn.LayerNorm(width)
        self.convolution_inner_norm = nn.LayerNorm(width)
        self.feedforward2_norm = nn.LayerNorm(width)
        self.final_norm = nn.LayerNorm(width)
        self.router = Router(width, experts.count, experts.router) if experts else None


def _matrix_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
