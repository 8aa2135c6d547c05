"""A conformer block, split into what a group shares and what a layer owns.

x += 1/2 FFN(norm x); x += attention(norm x); x += convolution(norm x); x += 1/2 FFN-or-experts(norm x); norm x
(Gulati et al., 2020, equation 1; the first FFN may be experts too). The block holds every matrix; the layer holds the
norms and the routers, so that one block can serve several depths (Bai et al., 2022). Dropout acts on what a module adds
to the residual stream and nowhere else: nothing random happens inside experts, so that a run does not depend on which
process holds them.

Shapes: B batch, T frames, D model width, N packed valid frames.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from model.adapters import AdaptersConfig, AdapterSite, BlockAdapters
from model.layers.attention import Positions, RelativeSelfAttention, SelfAttention, valid_key_mask
from model.layers.batch_norm import FrameBatchNorm
from model.layers.chunk_mask import ChunkMask
from model.layers.convolution import ConvolutionModule
from model.layers.depthwise import LayerKernel, ViewConfig, ViewMixture
from model.layers.feedforward import FeedForward
from model.layers.packing import Packing
from model.layers.silu_linear import SiluLinear
from model.layers.streaming_cache import LayerCache
from model.moe.experts import ExpertStack, build_experts
from model.moe.router import ExpertsConfig, Router, Routing

NORMS = (
    "feedforward1_norm",
    "attention_norm",
    "convolution_norm",
    "convolution_inner_norm",
    "feedforward2_norm",
    "final_norm",
)
FEEDFORWARDS = ("feedforward1", "feedforward2")


@dataclass
class Frames:
    """What every layer needs to know about the frames of a batch.

    packing: which of them are valid. positions: those of all keys. attention_mask: [B, 1, 1, T] or, in chunks,
    [B or 1, 1, T, T], True at keys that may be attended to; None when all may.
    """

    packing: Packing
    positions: Positions
    attention_mask: Tensor | None

    @classmethod
    def from_valid(
        cls,
        valid_BT: Tensor,
        positions: Positions,
        chunk: ChunkMask | None = None,
    ) -> "Frames":
        """Describe a batch whose frames are valid where `valid_BT` is True."""
        packing = Packing(valid_BT)
        return cls(packing, positions, _attention_mask(valid_BT, packing.padded, chunk))


def _attention_mask(
    valid_BT: Tensor,
    padded: bool,
    chunk: ChunkMask | None,
) -> Tensor | None:
    if chunk is None:
        if not padded:
            return None
        return valid_key_mask(valid_BT)

    num_frames = valid_BT.shape[1]
    chunk_TT = chunk.mask(num_frames, valid_BT.device)
    if not padded:
        return chunk_TT[None, None]
    # The chunks that a padded frame sees may be all padding, and the softmax of a row without a key is undefined: every
    # frame attends to itself.
    itself_TT = torch.eye(num_frames, dtype=torch.bool, device=valid_BT.device)
    return (chunk_TT & valid_BT[:, None, None, :]) | itself_TT


class LayerOutput(NamedTuple):
    """A layer's output.

    frames_ND: packed. routings: one of each router, in the order in which frames pass them. moments: those of its
    BatchNorm in training, None with LayerNorm.
    """

    frames_ND: Tensor
    routings: list[Routing]
    moments: Tensor | None


class ConformerBlock(nn.Module):
    """The weights of a group: both feed-forward layers (either may be experts), attention and convolution."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        kernel_size: int,
        dropout: float,
        experts: ExpertsConfig | None,
        positions: Literal["rotary", "relative", "none"] = "rotary",
        causal_convolution: bool = False,
        convolution_norm: Literal["layer", "batch"] = "layer",
        convolution_views: tuple[ViewConfig, ...] = (),
        kernel_owner: Literal["block", "layer"] = "block",
    ):
        super().__init__()

        def feedforward(place: str) -> nn.Module:
            if experts is not None and place in experts.places:
                return build_experts(experts, width, hidden)
            return FeedForward(width, hidden)

        # Weights are drawn in this order: another one would start every seeded run differently.
        self.feedforward1 = feedforward("first")
        if positions == "relative":
            self.attention = RelativeSelfAttention(width, heads)
        else:
            self.attention = SelfAttention(width, heads)
        self.convolution = ConvolutionModule(
            width,
            kernel_size,
            causal=causal_convolution,
            depthwise_bias=convolution_norm != "batch",
            views=convolution_views,
            layers_own_kernels=kernel_owner == "layer",
        )
        self.feedforward2 = feedforward("second")
        self.dropout = nn.Dropout(dropout)
        # Those of all layers that use the block; a layer may have some of its own.
        self.adapters: BlockAdapters | None = None

    def build_adapters(self, config: AdaptersConfig) -> BlockAdapters:
        """New adapters for the block's linear and feed-forward layers, or for one layer's use of them.

        The linear layers inside of experts have no low-rank ones.
        """
        linears: dict[str, nn.Linear] = {}
        if "attention" in config.parts:
            linears["query_key_value"] = self.attention.query_key_value
            linears["attention_output"] = self.attention.output
        if "convolution" in config.parts:
            linears["gated"] = self.convolution.gated
            linears["convolution_output"] = self.convolution.output
        if "feedforward" in config.parts:
            for place in FEEDFORWARDS:
                feedforward = getattr(self, place)
                if isinstance(feedforward, FeedForward):
                    linears[f"{place}_expand"] = feedforward.expand
                    linears[f"{place}_contract"] = feedforward.contract
        sites = {}
        for name, linear in linears.items():
            sites[name] = AdapterSite(linear, activated=isinstance(linear, SiluLinear))
        width = self.attention.output.out_features
        return BlockAdapters(config, width, sites, FEEDFORWARDS)

    @torch.no_grad()
    def scale_branches(self, factor: float) -> None:
        """Multiply what each module adds to the residual stream: its last linear layer, of every expert."""
        outputs = [self.attention.output, self.convolution.output]
        for feedforward in (self.feedforward1, self.feedforward2):
            for part in feedforward.modules():
                if isinstance(part, FeedForward):
                    outputs.append(part.contract)
                elif isinstance(part, ExpertStack):
                    part.scale_output(factor)
        for output in outputs:
            output.weight *= factor
            output.bias *= factor

    def forward(
        self,
        x_ND: Tensor,
        layer: "LayerParameters",
        frames: Frames,
        cache: LayerCache | None = None,
    ) -> LayerOutput:
        """One layer's pass through the block: packed frames [N, D] to [N, D]. `cache` holds the frames before them."""
        packing = frames.packing
        input_ND = x_ND
        adapters = layer.adapters
        if adapters is None:
            adapters = self.adapters

        # Stochastic depth (Huang et al., 2016): a share of the utterances skips the layer, and what it adds to the
        # others is divided by the share that is kept, so that its mean is that of evaluation.
        # Nothing is drawn where nothing is skipped: an option that is off takes no random number.
        keep = 1.0
        if self.training:
            keep = 1 - layer.skipped
        kept_B = None
        if keep != 1:
            kept_B = torch.rand(packing.shape[0], device=x_ND.device) < keep

        def drop(added_ND: Tensor) -> Tensor:
            added_ND = self.dropout(added_ND)
            if keep == 1:
                return added_ND
            return added_ND / keep

        # Half a step each: the two feed-forward layers around attention and convolution stand for one.
        normed_ND = layer.feedforward1_norm(x_ND)
        router = layer.feedforward1_router
        added_ND, first_routings = self._feed_forward("feedforward1", normed_ND, router, layer.index, adapters)
        x_ND = torch.add(x_ND, drop(added_ND), alpha=0.5)

        normed_ND = layer.attention_norm(x_ND)
        mask = frames.attention_mask
        added_ND = self.attention(normed_ND, frames.positions, mask, cache, packing, adapters)
        x_ND = x_ND + drop(added_ND)

        normed_ND = layer.convolution_norm(x_ND)
        inner_norm = layer.convolution_inner_norm
        added_ND, moments = self.convolution(normed_ND, packing, inner_norm, cache, adapters, layer.kernel)
        x_ND = x_ND + drop(added_ND)

        normed_ND = layer.feedforward2_norm(x_ND)
        added_ND, second_routings = self._feed_forward("feedforward2", normed_ND, layer.router, layer.index, adapters)
        x_ND = layer.final_norm(torch.add(x_ND, drop(added_ND), alpha=0.5))

        # All utterances were computed, and those that skip the layer leave it as they entered: stochastic depth
        # regularises and saves no time.
        if kept_B is not None:
            x_ND = torch.where(kept_B[packing.rows, None], x_ND, input_ND)
        return LayerOutput(x_ND, first_routings + second_routings, moments)

    def _feed_forward(
        self,
        place: str,
        x_ND: Tensor,
        router: Router | None,
        layer_index: int,
        adapters: BlockAdapters | None,
    ) -> tuple[Tensor, list[Routing]]:
        """The output of a feed-forward layer, or of experts by the choice of the layer's router, and the routing."""
        feedforward = getattr(self, place)
        if router is None:
            output_ND = feedforward(x_ND, adapters, place)
            if adapters is not None:
                output_ND = adapters.add(place, output_ND, x_ND)
            return output_ND, []
        routing = router(x_ND, layer_index)
        # Autocast leaves fp32 after a norm and does not see into the experts' own functions: they multiply in the
        # precision of the matrices around them.
        device = x_ND.device.type
        if torch.is_autocast_enabled(device):
            x_ND = x_ND.to(torch.get_autocast_dtype(device))
        output_ND = feedforward(x_ND, routing)
        if adapters is not None:
            output_ND = adapters.add(place, output_ND, x_ND, routing.kept_weights())
        return output_ND, [routing]


class LayerParameters(nn.Module):
    """What fits a block to a depth: six norms, one of them inside the convolution module, routers, and a kernel of the
    depthwise convolution, or a mixture of the block's, where the encoder has such.

    Each layer has one of these. Norms and routers that a group or the encoder owns are in another, and its layers refer
    to them (`share`). `index` is the number of the layer, `skipped` the share of utterances that skip it in training.
    """

    def __init__(
        self,
        width: int,
        experts: ExpertsConfig | None,
        convolution_norm: Literal["layer", "batch"] = "layer",
        skipped: float = 0.0,
        index: int = 0,
        norms: bool = True,
        num_layers: int = 0,
    ):
        """Own norms if `norms`, and a router for each place of `experts`, which tells `num_layers` layers apart."""
        super().__init__()
        self.index = index
        self.skipped = skipped

        if norms:
            self.feedforward1_norm = nn.LayerNorm(width)
            self.attention_norm = nn.LayerNorm(width)
            self.convolution_norm = nn.LayerNorm(width)
            if convolution_norm == "batch":
                self.convolution_inner_norm = FrameBatchNorm(width)
            else:
                self.convolution_inner_norm = nn.LayerNorm(width)
            self.feedforward2_norm = nn.LayerNorm(width)
            self.final_norm = nn.LayerNorm(width)

        def router(place: str) -> Router | None:
            if experts is None or place not in experts.places:
                return None
            return Router(width, experts.count, experts.router, experts.capacity_factor, num_layers)

        # The names are the checkpoints': `router` is that of the second feed-forward layer.
        self.feedforward1_router = router("first")
        self.router = router("second")
        self.kernel: ViewMixture | LayerKernel | None = None
        self.adapters: BlockAdapters | None = None

    def share(self, owner: "LayerParameters") -> None:
        """Use the norms and routers of `owner` as if they were this layer's own."""
        for name, module in owner.named_children():
            # Beside the tree of modules, in which a tensor with two names would be stored and exported twice.
            object.__setattr__(self, name, module)

    def norms(self) -> dict[str, nn.Module]:
        """The norms that the layer uses, its own or shared, by name."""
        return {name: getattr(self, name) for name in NORMS}

    def routers(self) -> list[Router]:
        """The routers that the layer uses, its own or shared, in the order in which frames pass them."""
        return [router for router in (self.feedforward1_router, self.router) if router is not None]
