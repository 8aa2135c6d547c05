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

from model.layers.attention import Positions, RelativeSelfAttention, SelfAttention, attend_to_valid
from model.layers.batch_norm import FrameBatchNorm
from model.layers.chunk_mask import ChunkMask
from model.layers.convolution import ConvolutionModule
from model.layers.feedforward import FeedForward
from model.layers.packing import Packing
from model.layers.streaming_cache import LayerCache
from model.moe.experts import build_experts
from model.moe.router import ExpertsConfig, Router, Routing

NORMS = (
    "feedforward1_norm",
    "attention_norm",
    "convolution_norm",
    "convolution_inner_norm",
    "feedforward2_norm",
    "final_norm",
)


@dataclass
class Frames:
    """What every layer needs to know about the frames of a batch.

    packing: which of them are valid; positions: those of all keys; attend: [B, 1, 1, T] or, in chunks,
    [B or 1, 1, T, T], True at keys that may be attended to, None when all may.
    """

    packing: Packing
    positions: Positions
    attend: Tensor | None

    @classmethod
    def of(cls, valid_BT: Tensor, positions: Positions, chunk: ChunkMask | None = None) -> "Frames":
        """Describe a batch whose valid frames are known."""
        packing = Packing(valid_BT)
        return cls(packing, positions, _attention_mask(valid_BT, packing.padded, chunk))


def _attention_mask(valid_BT: Tensor, padded: bool, chunk: ChunkMask | None) -> Tensor | None:
    if chunk is None:
        if not padded:
            return None
        return attend_to_valid(valid_BT)
    num_frames = valid_BT.shape[1]
    within_TT = chunk.mask(num_frames, valid_BT.device)
    if not padded:
        return within_TT[None, None]
    # The chunks that a padded frame sees may be all padding: it attends to itself.
    itself_TT = torch.eye(num_frames, dtype=torch.bool, device=valid_BT.device)
    return (within_TT & valid_BT[:, None, None, :]) | itself_TT


class LayerOutput(NamedTuple):
    """frames_ND a layer's output, packed, routings how its routers chose, in the order that frames pass them, moments
    those of its BatchNorm in training (none with LayerNorm)."""

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
    ):
        super().__init__()
        places = experts.places if experts else ()

        def feedforward(place: str) -> nn.Module:
            return build_experts(experts, width, hidden) if experts and place in places else FeedForward(width, hidden)

        self.feedforward1 = feedforward("first")
        attention = RelativeSelfAttention if positions == "relative" else SelfAttention
        self.attention = attention(width, heads)
        self.convolution = ConvolutionModule(width, kernel_size, causal_convolution, convolution_norm != "batch")
        self.feedforward2 = feedforward("second")
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_ND: Tensor, layer: "LayerParameters", frames: Frames, past: LayerCache | None = None
    ) -> LayerOutput:
        """One layer's pass through the block: packed frames [N, D] to [N, D]. `past` holds what came before them."""
        # Stochastic depth (Huang et al., 2016): a share of the utterances skips the layer, the others weigh more.
        keep, packing, entered_ND = 1 - layer.skipped if self.training else 1.0, frames.packing, x_ND
        kept_B = None if keep == 1 else torch.rand(packing.shape[0], device=x_ND.device) < keep

        def drop(added_ND: Tensor) -> Tensor:
            added_ND = self.dropout(added_ND)
            return added_ND if keep == 1 else added_ND / keep

        output, first = _apply(self.feedforward1, layer.feedforward1_norm(x_ND), layer.feedforward1_router, layer)
        x_ND = torch.add(x_ND, drop(output), alpha=0.5)
        attended = self.attention(layer.attention_norm(x_ND), frames.positions, frames.attend, past, packing)
        x_ND = x_ND + drop(attended)
        convolved, moments = self.convolution(layer.convolution_norm(x_ND), packing, layer.convolution_inner_norm, past)
        x_ND = x_ND + drop(convolved)
        output, second = _apply(self.feedforward2, layer.feedforward2_norm(x_ND), layer.router, layer)
        x_ND = layer.final_norm(torch.add(x_ND, drop(output), alpha=0.5))
        if kept_B is not None:
            x_ND = torch.where(kept_B[packing.rows, None], x_ND, entered_ND)
        return LayerOutput(x_ND, first + second, moments)


def _apply(
    feedforward: nn.Module, x_ND: Tensor, router: Router | None, layer: "LayerParameters"
) -> tuple[Tensor, list[Routing]]:
    """A feed-forward layer, or experts by the choice of the layer's router, which is handed out too."""
    if router is None:
        return feedforward(x_ND), []
    routing = router(x_ND, layer.index)
    # Experts multiply in the precision of the matrices around them, norms may have left fp32.
    return feedforward(x_ND.to(_matrix_dtype(x_ND)), routing), [routing]


class LayerParameters(nn.Module):
    """What fits a block to a depth: five norms, the norm inside the convolution module, and routers.

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
        """Owns norms if `norms`, and a router for each place of `experts`, which tells `num_layers` layers apart."""
        super().__init__()
        self.index, self.skipped = index, skipped
        if norms:
            self._add_norms(width, convolution_norm)

        def router(place: str) -> Router | None:
            if experts is None or place not in experts.places:
                return None
            return Router(width, experts.count, experts.router, experts.capacity_factor, num_layers)

        self.feedforward1_router = router("first")
        self.router = router("second")

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

    def _add_norms(self, width: int, convolution_norm: Literal["layer", "batch"]) -> None:
        self.feedforward1_norm = nn.LayerNorm(width)
        self.attention_norm = nn.LayerNorm(width)
        self.convolution_norm = nn.LayerNorm(width)
        self.convolution_inner_norm = FrameBatchNorm(width) if convolution_norm == "batch" else nn.LayerNorm(width)
        self.feedforward2_norm = nn.LayerNorm(width)
        self.final_norm = nn.LayerNorm(width)


def _matrix_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
