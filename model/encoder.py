"""The encoder: subsampling, then layers, each of which uses one of the blocks.

With as many groups as layers nothing is shared and this is the plain conformer; with fewer, layer l uses block
floor(l G / N) (`contiguous`) or l mod G (`cyclic`).

Shapes: B batch, T feature frames, S frames after subsampling, F mel bins, D model width.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import RotaryPositions
from model.block import ConformerBlock, Frames, LayerParameters
from model.router import ExpertsConfig, Routing
from model.subsampling import ConvolutionSubsampling, SubsamplingConfig, valid_mask


class EncoderConfig(BaseModel, frozen=True, extra="forbid"):
    layers: int = Field(default=12, ge=1, description="depth: how many times a block is applied")
    groups: int | None = Field(default=None, ge=1, description="number of blocks; none: as many as layers, no sharing")
    sharing: Literal["contiguous", "cyclic"] = Field(default="contiguous", description="which layers share a block")
    width: int = Field(default=256, ge=2, description="model width D")
    heads: int = Field(default=4, ge=1, description="attention heads")
    feedforward_width: int = Field(default=1024, ge=1, description="hidden width of each feed-forward layer and expert")
    kernel_size: int = Field(default=15, ge=1, description="frames under the depthwise convolution; odd")
    experts: ExpertsConfig | None = Field(default=None, description="experts in the second feed-forward layer")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    subsampling: SubsamplingConfig = SubsamplingConfig()
    activation_checkpointing: bool = Field(default=False, description="recompute layers in the backward pass")

    @model_validator(mode="after")
    def _consistent(self):
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} does not split into {self.heads} heads of an even width (rotary positions turn "
                f"pairs): choose a multiple of {2 * self.heads}"
            )
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {self.kernel_size} is even: choose {self.kernel_size + 1}")
        if self.layers % self.num_groups:
            raise ValueError(
                f"{self.layers} layers do not split into {self.num_groups} equal groups: "
                f"choose groups among {[g for g in range(1, self.layers + 1) if self.layers % g == 0]}"
            )
        return self

    @property
    def num_groups(self) -> int:
        return self.groups or self.layers

    @property
    def block_of_layer(self) -> list[int]:
        """The block that each layer uses."""
        if self.sharing == "cyclic":
            return [layer % self.num_groups for layer in range(self.layers)]
        return [layer * self.num_groups // self.layers for layer in range(self.layers)]


@dataclass
class EncoderOutput:
    """frames_BSD the last layer's output, lengths_B its valid frames, layers the output of every layer (S frames
    each) in order, routings one entry per layer with experts."""

    frames_BSD: Tensor
    lengths_B: Tensor
    layers: list[Tensor]
    routings: list[Routing]


class Encoder(nn.Module):
    """Features to frames, through `layers` applications of `blocks`."""

    def __init__(self, config: EncoderConfig, mel_bins: int):
        super().__init__()
        self.config = config
        self.subsampling = ConvolutionSubsampling(config.subsampling, mel_bins, config.width)
        self.positions = RotaryPositions(config.width // config.heads)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            ConformerBlock(
                config.width,
                config.heads,
                config.feedforward_width,
                config.kernel_size,
                config.dropout,
                config.experts,
            )
            for _ in range(config.num_groups)
        )
        self.layers = nn.ModuleList(LayerParameters(config.width, config.experts) for _ in range(config.layers))

    def forward(self, features_BTF: Tensor, lengths_B: Tensor) -> EncoderOutput:
        """Features [B, T, F] with valid lengths [B] to the outputs of all layers."""
        x_BSD, lengths_B = self.subsampling(features_BTF, lengths_B)
        x_BSD = self.dropout(x_BSD)
        valid_BS = valid_mask(lengths_B, x_BSD.shape[1])
        index_N = valid_BS.flatten().nonzero().squeeze(1)
        frames = Frames(self.positions(x_BSD.shape[1]), valid_BS, index_N, padded=len(index_N) < valid_BS.numel())
        outputs, routings = [], []
        for layer, block in zip(self.layers, self.config.block_of_layer, strict=True):
            x_BSD, routing = self._run_layer(self.blocks[block], x_BSD, layer, frames)
            outputs.append(x_BSD)
            if routing is not None:
                routings.append(routing)
        return EncoderOutput(x_BSD, lengths_B, outputs, routings)

    def _run_layer(self, block, x_BSD: Tensor, layer, frames: Frames) -> tuple[Tensor, Routing | None]:
        if self.config.activation_checkpointing and self.training:
            # Reentrant checkpointing reduces a shared block's gradients twice under ZeRO.
            return checkpoint(block, x_BSD, layer, frames, use_reentrant=False)
        return block(x_BSD, layer, frames)
