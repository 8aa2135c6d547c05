"""The encoder: subsampling, then layers, each of which uses one of the blocks.

With as many groups as layers nothing is shared and this is the plain conformer; with fewer, layer l uses block
floor(l G / N) (`contiguous`) or l mod G (`cyclic`). Layers at either end may have blocks of their own. Norms and
routers belong to each layer, to its group, or (routers) to the whole encoder; what is shared is stored once.

Shapes: B batch, T feature frames, S frames after subsampling, F mel bins, D model width, N packed valid frames, E
experts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.adapters import AdaptersConfig, BlockAdapters
from model.block import ConformerBlock, Frames, LayerOutput, LayerParameters
from model.layers.attention import Positions, RelativePositions, RotaryPositions
from model.layers.batch_norm import FrameBatchNorm
from model.layers.chunk_mask import ChunkMask, ChunksConfig
from model.layers.depthwise import LayerKernel, ViewConfig, ViewMixture
from model.layers.packing import Packing
from model.layers.streaming_cache import LayerCache
from model.layers.subsampling import ConvolutionSubsampling, SubsamplingConfig, valid_mask
from model.moe.router import ExpertsConfig, Router, Routing


class EncoderConfig(BaseModel, frozen=True, extra="forbid"):
    layers: int = Field(
        default=12,
        ge=1,
        le=1000,
        description="depth: how many times a block is applied",
    )
    groups: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="number of blocks; none: as many as layers, no sharing",
    )
    sharing: Literal["contiguous", "cyclic"] = Field(default="contiguous", description="which layers share a block")
    width: int = Field(
        default=256,
        ge=2,
        le=65_536,
        description="model width D",
    )
    heads: int = Field(
        default=4,
        ge=1,
        le=1024,
        description="attention heads",
    )
    feedforward_width: int = Field(
        default=1024,
        ge=1,
        le=2**20,
        description="hidden width of each feed-forward layer and expert",
    )
    positions: Literal["rotary", "relative", "none"] = Field(default="rotary", description="positions in attention")
    kernel_size: int = Field(
        default=15,
        ge=1,
        le=9999,
        description="frames under the depthwise convolution; odd",
    )
    convolution_norm: Literal["layer", "batch"] = Field(default="layer", description="norm in the convolution module")
    causal_convolution: bool = Field(default=False, description="the depthwise convolution sees no later frames")
    convolution_views: tuple[ViewConfig, ...] = Field(
        default=(),
        max_length=4,
        description="2 to 4 depthwise kernels in place of one, which are added up to one of kernel_size; every layer "
        "mixes those of its block in its own way",
    )
    kernel_owner: Literal["block", "layer"] = Field(
        default="block", description="who owns the depthwise kernel: a block, or each layer that uses it"
    )
    chunks: ChunksConfig | None = Field(
        default=None, description="train for attention in chunks, as streaming needs it; none: full context only"
    )
    private_head: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="first layers, each with a block of its own",
    )
    private_tail: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="last layers, each with a block of its own",
    )
    norms: Literal["layer", "group"] = Field(default="layer", description="who owns the norms: a layer or its group")
    branch_exponent: float = Field(
        default=1.5,
        ge=0,
        le=2,
        description="what the modules of a block that R layers use add to the residual stream starts R ** "
        "-branch_exponent times as large as drawn",
    )
    experts: ExpertsConfig | None = Field(default=None, description="experts in place of feed-forward layers")
    adapters: AdaptersConfig | None = Field(
        default=None, description="small modules beside the blocks' weights, as a stage of kind adapt trains them"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="share of values set to zero while training")
    stochastic_depth: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of utterances that skip the last layer in training; of layer l of N, (l + 1) / N of it",
    )
    subsampling: SubsamplingConfig = SubsamplingConfig()
    activation_checkpointing: bool = Field(default=False, description="recompute layers in the backward pass")

    @model_validator(mode="after")
    def _check_width(self):
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
        return self

    @model_validator(mode="after")
    def _check_convolution(self):
        # An even kernel has no frame in its middle: its output would lie half a frame off.
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {self.kernel_size} is even: choose {self.kernel_size + 1}")
        if len(self.convolution_views) == 1:
            raise ValueError("convolution_views has one kernel: give 2 to 4, or leave it out and set kernel_size")
        for view in self.convolution_views:
            if view.kernel_size % 2 == 0:
                raise ValueError(
                    f"a view of convolution_views has kernel_size {view.kernel_size}, which is even: choose "
                    f"{view.kernel_size + 1}"
                )
            if view.span > self.kernel_size:
                raise ValueError(
                    f"a view of convolution_views spans {view.span} frames (kernel_size {view.kernel_size}, dilation "
                    f"{view.dilation}) and the encoder's kernel_size is {self.kernel_size}: choose at least {view.span}"
                )
        if self.convolution_views and self.kernel_owner == "layer":
            raise ValueError(
                "kernel_owner is layer and convolution_views are of blocks: a layer's own kernel has no use for them; "
                "leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _check_groups(self):
        if self.num_grouped < 1:
            raise ValueError(
                f"private_head {self.private_head} and private_tail {self.private_tail} leave none of {self.layers} "
                f"layers to groups: choose at most {self.layers - 1} together"
            )
        if self.num_grouped % self.num_groups:
            divisors = [number for number in range(1, self.num_grouped + 1) if self.num_grouped % number == 0]
            layers = f"{self.num_grouped} layers"
            if self.num_grouped < self.layers:
                layers += " between private_head and private_tail"
            raise ValueError(
                f"{layers} do not split into {self.num_groups} equal groups: choose groups among {divisors}"
            )
        return self

    @model_validator(mode="after")
    def _check_chunks(self):
        if self.chunks and not self.causal_convolution:
            raise ValueError(
                "chunks are set but causal_convolution is false: the convolutions would see frames of later chunks; "
                "set causal_convolution to true"
            )
        return self

    @model_validator(mode="after")
    def _check_adapters(self):
        if self.adapters is None or self.experts is None:
            return self
        # A frame would pass the bottleneck twice, under weights that are the block's own.
        if self.adapters.kind == "bottleneck" and self.experts.residual:
            raise ValueError(
                "bottlenecks have no place beside experts with a dense layer beside them (experts.residual): choose "
                "adapters of kind lora"
            )
        return self

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
        blocks = list(range(self.private_head))
        for layer in range(self.num_grouped):
            # ABAB (MoEUT, Csordás et al., 2024), or AABB, the publication's (Bai et al., 2022).
            if self.sharing == "cyclic":
                group = layer % self.num_groups
            else:
                group = layer * self.num_groups // self.num_grouped
            blocks.append(self.private_head + group)
        blocks.extend(range(self.num_blocks - self.private_tail, self.num_blocks))
        return blocks

    @property
    def routing_names(self) -> list[str]:
        """The names of `EncoderOutput.routings`: the layer, and the place unless it is the second alone."""
        if self.experts is None:
            return []
        layers = [f"layer-{layer:02d}" for layer in range(self.layers)]
        if self.experts.placement == "second":
            return layers
        return [f"{layer}-{place}" for layer in layers for place in self.experts.places]

    @property
    def expert_users(self) -> dict[str, str]:
        """What the layers that share experts are called together, such as block-00, by the names of their routings; of
        a block that one layer uses, the name of its routing."""
        users: dict[str, str] = {}
        if self.experts is None:
            return users
        num_places = len(self.experts.places)
        for index, name in enumerate(self.routing_names):
            layer = index // num_places
            block = self.block_of_layer[layer]
            users[name] = name
            if self.block_of_layer.count(block) > 1:
                users[name] = name.replace(f"layer-{layer:02d}", f"block-{block:02d}")
        return users


@dataclass
class EncoderOutput:
    """The encoder's output on a batch.

    frames_BSD: of the last layer. lengths_B: the valid ones of each utterance. input_ND: what enters the first layer,
    packed. layers: the output of every layer, S frames each. routings: one per layer and place of experts, in the order
    in which frames pass them. moments: one per layer with BatchNorm, in training.
    """

    frames_BSD: Tensor
    lengths_B: Tensor
    input_ND: Tensor
    layers: "PaddedLayers"
    routings: list[Routing]
    moments: list[Tensor]


class Encoder(nn.Module):
    """Features to frames, through `layers` applications of `blocks`."""

    def __init__(self, config: EncoderConfig, mel_bins: int):
        super().__init__()
        self.config = config
        self.subsampling = ConvolutionSubsampling(config.subsampling, mel_bins, config.width)
        self.positions = None
        if config.positions == "rotary":
            self.positions = RotaryPositions(config.width // config.heads)
        elif config.positions == "relative":
            self.positions = RelativePositions(config.width)
        self.dropout = nn.Dropout(config.dropout)

        self.blocks = nn.ModuleList()
        for _ in range(config.num_blocks):
            block = ConformerBlock(
                width=config.width,
                heads=config.heads,
                hidden=config.feedforward_width,
                kernel_size=config.kernel_size,
                dropout=config.dropout,
                experts=config.experts,
                positions=config.positions,
                causal_convolution=config.causal_convolution,
                convolution_norm=config.convolution_norm,
                convolution_views=config.convolution_views,
                kernel_owner=config.kernel_owner,
            )
            self.blocks.append(block)
        # R layers that add the same function of their input turn all frames towards the few directions that it prefers:
        # as drawn, the effective rank of the output falls with depth, and trainings get stuck there.
        for index, block in enumerate(self.blocks):
            assert isinstance(block, ConformerBlock)
            num_layers = config.block_of_layer.count(index)
            block.scale_branches(num_layers**-config.branch_exponent)
        self._add_layers(config)
        if config.adapters is not None:
            self.set_adapters(self.build_adapters(config.adapters), config.adapters.scope)

    def build_adapters(self, config: AdaptersConfig) -> list[BlockAdapters]:
        """New adapters for every layer, or for every block; the encoder does not use them yet."""
        blocks = list(range(len(self.blocks)))
        if config.scope == "layer":
            blocks = self.config.block_of_layer
        adapters = []
        for index in blocks:
            block = self.blocks[index]
            assert isinstance(block, ConformerBlock)
            adapters.append(block.build_adapters(config))
        return adapters

    def set_adapters(self, adapters: Sequence[BlockAdapters | None], scope: Literal["layer", "block"]) -> None:
        """Use these adapters, one set for each layer or for each block, or none where there is None."""
        owners = self.layers
        if scope == "block":
            owners = self.blocks
        for owner, owned in zip(owners, adapters, strict=True):
            assert isinstance(owner, LayerParameters | ConformerBlock)
            owner.adapters = owned

    def _add_layers(self, config: EncoderConfig) -> None:
        """Make what each layer owns (`layers`), what those of a block share (`groups`), what all do (`common`)."""
        router_scope = None
        if config.experts is not None:
            router_scope = config.experts.router.scope
        # By default norms and routers are a layer's own (Bai et al., 2022): with them a shared block adapts to its
        # depth.
        layer_owns_norms = config.norms == "layer"
        group_owns_router = router_scope == "group"

        # The names `layers`, `groups`, `common` and `blocks` are those of tensors in checkpoints and finished models.
        self.layers = nn.ModuleList()
        for index in range(config.layers):
            layer = LayerParameters(
                config.width,
                experts=config.experts if router_scope == "layer" else None,
                convolution_norm=config.convolution_norm,
                # Linear in depth (Huang et al., 2016): lower layers make what all above them build on.
                skipped=config.stochastic_depth * (index + 1) / config.layers,
                index=index,
                norms=layer_owns_norms,
            )
            if config.convolution_views:
                layer.kernel = ViewMixture(config.width, len(config.convolution_views))
            elif config.kernel_owner == "layer":
                layer.kernel = LayerKernel(config.width, config.kernel_size)
            self.layers.append(layer)

        self.groups = nn.ModuleList()
        if group_owns_router or not layer_owns_norms:
            for _ in range(config.num_blocks):
                group = LayerParameters(
                    config.width,
                    experts=config.experts if group_owns_router else None,
                    convolution_norm=config.convolution_norm,
                    norms=not layer_owns_norms,
                )
                self.groups.append(group)

        # One router for all layers (Omni-router, Gu et al., 2025); a `conditioned` one is told which layer it serves.
        self.common = None
        if router_scope in ("global", "conditioned"):
            self.common = LayerParameters(
                config.width,
                config.experts,
                norms=False,
                num_layers=config.layers if router_scope == "conditioned" else 0,
            )

        block_of_layer = config.block_of_layer
        for index, layer in enumerate(self._layer_parameters()):
            if len(self.groups):
                group = self.groups[block_of_layer[index]]
                assert isinstance(group, LayerParameters)
                layer.share(group)
            if self.common is not None:
                layer.share(self.common)

    def _layer_parameters(self) -> Iterator[LayerParameters]:
        for layer in self.layers:
            assert isinstance(layer, LayerParameters)
            yield layer

    def forward(
        self,
        features_BTF: Tensor,
        lengths_B: Tensor,
        chunk: ChunkMask | None = None,
    ) -> EncoderOutput:
        """Features [B, T, F] with valid lengths [B] to the outputs of all layers.

        Without a `chunk` attention has full context, except in training where `chunks` draws one. Raises ValueError for
        a chunk without causal convolutions, which would see beyond it.
        """
        if chunk and not self.config.causal_convolution:
            raise ValueError(f"{chunk} needs an encoder that was trained with causal_convolution: true")
        x_BSD, lengths_B = self.subsampling(features_BTF, lengths_B)
        x_BSD = self.dropout(x_BSD)
        num_frames = x_BSD.shape[1]
        # Dynamic chunk training (Zhang et al., U2, 2020): one model learns to work with any chunk size.
        if self.training and self.config.chunks and not chunk:
            chunk = self.config.chunks.draw(num_frames)

        valid_BS = valid_mask(lengths_B, num_frames)
        frames = Frames.from_valid(valid_BS, self.encode_positions(num_frames), chunk)
        # From here on layers see valid frames alone: padding reaches no router, no expert and no balance loss.
        input_ND = frames.packing.pack(x_BSD)
        outputs = self.run_layers(input_ND, frames)

        # All outputs are handed out, packed as they are: what reads one of them pays for its padding.
        layers = PaddedLayers(outputs, frames.packing)
        routings = []
        moments = []
        for output in outputs:
            routings.extend(output.routings)
            if output.moments is not None:
                moments.append(output.moments)
        return EncoderOutput(layers[-1], lengths_B, input_ND, layers, routings, moments)

    def encode_positions(self, num_frames: int) -> Positions:
        """The positions of so many keys, for all layers."""
        if self.positions is None:
            return None
        return self.positions(num_frames)

    def run_layers(
        self,
        x_ND: Tensor,
        frames: Frames,
        caches: list[LayerCache] | None = None,
    ) -> list[LayerOutput]:
        """The output of each layer on the packed output of the one before; `caches` holds one entry per layer."""
        recompute = self.config.activation_checkpointing and self.training
        block_of_layer = self.config.block_of_layer
        outputs = []
        for index, layer in enumerate(self.layers):
            block = self.blocks[block_of_layer[index]]
            cache = caches[index] if caches else None
            if recompute:
                # Reentrant checkpointing reduces a shared block's gradients twice under ZeRO.
                output = checkpoint(block, x_ND, layer, frames, cache, use_reentrant=False)
            else:
                output = block(x_ND, layer, frames, cache)
            outputs.append(output)
            x_ND = output.frames_ND
        return outputs

    def update_norms(self, moments: list[Tensor]) -> None:
        """Move BatchNorm's running statistics, by the moments of `EncoderOutput` added up over all lanes of a step.

        A norm that several layers use follows their moments together.
        """
        if not moments:
            return
        # Moved once per step: one by one its layers' moments would move it as many times as fast.
        pooled: dict[FrameBatchNorm, Tensor] = {}
        for layer, layer_moments in zip(self.layers, moments, strict=True):
            norm = layer.convolution_inner_norm
            assert isinstance(norm, FrameBatchNorm)
            if norm in pooled:
                pooled[norm] = pooled[norm] + layer_moments
            else:
                pooled[norm] = layer_moments
        for norm, norm_moments in pooled.items():
            norm.update(norm_moments)

    def rebalance(self, counts: Sequence[Tensor]) -> None:
        """Move the loss-free biases; `counts` [E] each, over all lanes of a step, come in the order of the routings.

        A router that several layers use follows their counts together.
        """
        routers: list[Router] = []
        for layer in self._layer_parameters():
            routers.extend(layer.routers())
        # Likewise one step of the bias for each step of training, however many layers the router serves.
        pooled: dict[Router, Tensor] = {}
        for router, counts_E in zip(routers, counts, strict=True):
            if router in pooled:
                pooled[router] = pooled[router] + counts_E
            else:
                pooled[router] = counts_E
        for router, counts_E in pooled.items():
            router.rebalance(counts_E)


class PaddedLayers:
    """The output of each layer as a padded batch [B, S, D], made when it is asked for: few are."""

    def __init__(self, outputs: list[LayerOutput], packing: Packing):
        self._outputs = outputs
        self._packing = packing

    def __len__(self) -> int:
        return len(self._outputs)

    def packed(self, layer: int) -> Tensor:
        """The output of a layer without padding, [N, D]."""
        return self._outputs[layer].frames_ND

    def __getitem__(self, layer: int) -> Tensor:
        return self._packing.pad(self._outputs[layer].frames_ND)
