"""The encoder: subsampling, then layers, each of which uses one of the blocks.

With as many groups as layers nothing is shared and this is the plain conformer; with fewer, layer l uses block
floor(l G / N) (`contiguous`) or l mod G (`cyclic`). Layers at either end may have blocks of their own. Norms and
routers belong to each layer, to its group, or (routers) to the whole encoder; what is shared is stored once.

Shapes: B batch, T feature frames, S frames after subsampling, F mel bins, D model width,
N packed valid frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.block import ConformerBlock, Frames, LayerOutput, LayerParameters
from model.layers.attention import Positions, RelativePositions, RotaryPositions
from model.layers.batch_norm import FrameBatchNorm
from model.layers.chunk_mask import ChunkMask, ChunksConfig
from model.layers.packing import Packing
from model.layers.streaming_cache import LayerCache
from model.layers.subsampling import ConvolutionSubsampling, SubsamplingConfig, valid_mask
from model.moe.router import ExpertsConfig, Router, Routing


class EncoderConfig(BaseModel, frozen=True, extra="forbid"):
    layers: int = Field(default=12, ge=1, description="depth: how many times a block is applied")
    groups: int | None = Field(default=None, ge=1, description="number of blocks; none: as many as layers, no sharing")
    sharing: Literal["contiguous", "cyclic"] = Field(default="contiguous", description="which layers share a block")
    width: int = Field(default=256, ge=2, description="model width D")
    heads: int = Field(default=4, ge=1, description="attention heads")
    feedforward_width: int = Field(default=1024, ge=1, description="hidden width of each feed-forward layer and expert")
    positions: Literal["rotary", "relative", "none"] = Field(default="rotary", description="positions in attention")
    kernel_size: int = Field(default=15, ge=1, description="frames under the depthwise convolution; odd")
    convolution_norm: Literal["layer", "batch"] = Field(default="layer", description="norm in the convolution module")
    causal_convolution: bool = Field(default=False, description="the depthwise convolution sees no later frames")
    chunks: ChunksConfig | None = Field(
        default=None, description="train for attention in chunks, as streaming needs it; none: full context only"
    )
    private_head: int = Field(default=0, ge=0, description="first layers, each with a block of its own")
    private_tail: int = Field(default=0, ge=0, description="last layers, each with a block of its own")
    norms: Literal["layer", "group"] = Field(default="layer", description="who owns the norms: a layer or its group")
    experts: ExpertsConfig | None = Field(default=None, description="experts in place of feed-forward layers")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    stochastic_depth: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of utterances that skip the last layer in training; of layer l of N, (l + 1) / N of it",
    )
    subsampling: SubsamplingConfig = SubsamplingConfig()
    activation_checkpointing: bool = Field(default=False, description="recompute layers in the backward pass")

    @model_validator(mode="after")
    def _consistent(self):
        self._check_width()
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {self.kernel_size} is even: choose {self.kernel_size + 1}")
        if self.num_grouped < 1:
            raise ValueError(
                f"private_head {self.private_head} and private_tail {self.private_tail} leave none of {self.layers} "
                f"layers to groups: choose at most {self.layers - 1} together"
            )
        if self.num_grouped % self.num_groups:
            outside = "" if self.num_grouped == self.layers else " between private_head and private_tail"
            raise ValueError(
                f"{self.num_grouped} layers{outside} do not split into {self.num_groups} equal groups: "
                f"choose groups among {[g for g in range(1, self.num_grouped + 1) if self.num_grouped % g == 0]}"
            )
        if self.chunks and not self.causal_convolution:
            raise ValueError(
                "chunks are set but causal_convolution is false: the convolutions would see frames of later chunks; "
                "set causal_convolution to true"
            )
        return self

    def _check_width(self) -> None:
        if self.positions == "rotary" and self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} does not split into {self.heads} heads of an even width (rotary positions turn "
                f"pairs): choose a multiple of {2 * self.heads}"
            )
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} does not split into {self.heads} heads: choose a multiple of {self.heads}"
            )
        if self.positions == "relative" and self.width % 2:
            raise ValueError(f"width {self.width} is odd (relative positions are pairs): choose an even one")

    @property
    def num_grouped(self) -> int:
        """The layers between the private ones."""
        return self.layers - self.private_head - self.private_tail

    @property
    def num_groups(self) -> int:
        """The groups between the private layers."""
        return self.groups or self.num_grouped

    @property
    def num_blocks(self) -> int:
        return self.private_head + self.num_groups + self.private_tail

    @property
    def block_of_layer(self) -> list[int]:
        """The block that each layer uses; blocks count like the layers that use them first."""
        grouped = range(self.num_grouped)
        if self.sharing == "cyclic":
            groups = [layer % self.num_groups for layer in grouped]
        else:
            groups = [layer * self.num_groups // self.num_grouped for layer in grouped]
        head, tail = range(self.private_head), range(self.num_blocks - self.private_tail, self.num_blocks)
        return [*head, *(self.private_head + group for group in groups), *tail]

    @property
    def routing_names(self) -> list[str]:
        """The names of `EncoderOutput.routings`: the layer, and the place unless it is the second alone."""
        if self.experts is None:
            return []
        layers = [f"layer-{layer:02d}" for layer in range(self.layers)]
        if self.experts.placement == "second":
            return layers
        return [f"{layer}-{place}" for layer in layers for place in self.experts.places]


@dataclass
class EncoderOutput:
    """frames_BSD the last layer's output, lengths_B its valid frames, layers the output of every layer (S frames
    each) in order, routings one entry per layer and place of experts, in the order in which frames pass them, moments
    one per layer with BatchNorm, in training."""

    frames_BSD: Tensor
    lengths_B: Tensor
    layers: "PaddedLayers"
    routings: list[Routing]
    moments: list[Tensor]


class Encoder(nn.Module):
    """Features to frames, through `layers` applications of `blocks`."""

    def __init__(self, config: EncoderConfig, mel_bins: int):
        super().__init__()
        self.config = config
        self.subsampling = ConvolutionSubsampling(config.subsampling, mel_bins, config.width)
        self.positions = _positions(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            ConformerBlock(
                config.width,
                config.heads,
                config.feedforward_width,
                config.kernel_size,
                config.dropout,
                config.experts,
                config.positions,
                config.causal_convolution,
                config.convolution_norm,
            )
            for _ in range(config.num_blocks)
        )
        self._add_layers(config)

    def _add_layers(self, config: EncoderConfig) -> None:
        width, experts = config.width, config.experts
        scope = experts.router.scope if experts else None
        own, of_group = experts if scope == "layer" else None, experts if scope == "group" else None
        own_norms = config.norms == "layer"
        self.layers = nn.ModuleList(
            LayerParameters(
                width,
                own,
                config.convolution_norm,
                skipped=config.stochastic_depth * (layer + 1) / config.layers,
                index=layer,
                norms=own_norms,
            )
            for layer in range(config.layers)
        )
        # What the layers of a block share, and what all layers do.
        num_shared = config.num_blocks if of_group or not own_norms else 0
        self.groups = nn.ModuleList(
            LayerParameters(width, of_group, config.convolution_norm, norms=not own_norms) for _ in range(num_shared)
        )
        self.common = None
        if scope in ("global", "conditioned"):
            num_layers = config.layers if scope == "conditioned" else 0
            self.common = LayerParameters(width, experts, norms=False, num_layers=num_layers)
        for layer, block in zip(self.layers, config.block_of_layer, strict=True):
            owners = [self.groups[block] if num_shared else None, self.common]
            for owner in filter(None, owners):
                cast(LayerParameters, layer).share(cast(LayerParameters, owner))

    def forward(self, features_BTF: Tensor, lengths_B: Tensor, chunk: ChunkMask | None = None) -> EncoderOutput:
        """Features [B, T, F] with valid lengths [B] to the outputs of all layers.

        Without a `chunk` attention has full context, except in training where `chunks` draws one. Raises ValueError for
        a chunk without causal convolutions, which would see beyond it.
        """
        if chunk and not self.config.causal_convolution:
            raise ValueError(f"{chunk} needs an encoder that was trained with causal_convolution: true")
        x_BSD, lengths_B = self.subsampling(features_BTF, lengths_B)
        x_BSD = self.dropout(x_BSD)
        num_frames = x_BSD.shape[1]
        if self.training and self.config.chunks and not chunk:
            chunk = self.config.chunks.draw(num_frames)
        frames = Frames.of(valid_mask(lengths_B, num_frames), self.encode_positions(num_frames), chunk)
        outputs = self.run_layers(frames.packing.pack(x_BSD), frames)
        layers = PaddedLayers(outputs, frames.packing)
        return EncoderOutput(
            layers[-1],
            lengths_B,
            layers,
            [routing for output in outputs for routing in output.routings],
            [output.moments for output in outputs if output.moments is not None],
        )

    def encode_positions(self, num_frames: int) -> Positions:
        """The positions of so many keys, for all layers."""
        return self.positions(num_frames) if self.positions else None

    def run_layers(self, x_ND: Tensor, frames: Frames, pasts: list[LayerCache] | None = None) -> list[LayerOutput]:
        """What each layer makes of the packed output of the one before; `pasts` holds one entry per layer."""
        outputs = []
        for index, (layer, block) in enumerate(zip(self.layers, self.config.block_of_layer, strict=True)):
            output = self._run_layer(self.blocks[block], x_ND, layer, frames, pasts[index] if pasts else None)
            outputs.append(output)
            x_ND = output.frames_ND
        return outputs

    def update_norms(self, moments: list[Tensor]) -> None:
        """Move BatchNorm's running statistics, by the moments of `EncoderOutput` added up over all lanes of a step.

        A norm that several layers use follows their moments together.
        """
        pooled: dict[FrameBatchNorm, Tensor] = {}
        for layer, values in zip(self.layers if moments else [], moments, strict=True):
            norm = layer.convolution_inner_norm
            assert isinstance(norm, FrameBatchNorm)
            pooled[norm] = pooled[norm] + values if norm in pooled else values
        for norm, values in pooled.items():
            norm.update(values)

    def rebalance(self, counts: Sequence[Tensor]) -> None:
        """Move the loss-free biases; `counts` [E] each, over all lanes of a step, come in the order of the routings.

        A router that several layers use follows their counts together.
        """
        routers = [router for layer in self.layers for router in cast(LayerParameters, layer).routers()]
        pooled: dict[Router, Tensor] = {}
        for router, counts_E in zip(routers, counts, strict=True):
            pooled[router] = pooled[router] + counts_E if router in pooled else counts_E
        for router, counts_E in pooled.items():
            router.rebalance(counts_E)

    def _run_layer(self, block, x_ND: Tensor, layer, frames: Frames, past: LayerCache | None) -> LayerOutput:
        if self.config.activation_checkpointing and self.training:
            # Reentrant checkpointing reduces a shared block's gradients twice under ZeRO.
            return checkpoint(block, x_ND, layer, frames, past, use_reentrant=False)
        return block(x_ND, layer, frames, past)


class PaddedLayers:
    """The output of each layer as a padded batch [B, S, D], made when it is asked for: few are."""

    def __init__(self, outputs: list[LayerOutput], packing: Packing):
        self._outputs, self._packing = outputs, packing

    def __len__(self) -> int:
        return len(self._outputs)

    def __getitem__(self, layer: int) -> Tensor:
        return self._packing.pad(self._outputs[layer].frames_ND)


def _positions(config: EncoderConfig) -> RotaryPositions | RelativePositions | None:
    if config.positions == "rotary":
        return RotaryPositions(config.width // config.heads)
    return RelativePositions(config.width) if config.positions == "relative" else None
