"""Routers send each frame to experts, and measure how evenly they do so.

Balance losses, with f_i the share of choices that fell on expert i and P_i its mean probability (E experts):
`switch` E sum f_i P_i (Fedus et al., 2021, equation 4), `first_choice` the same with f_i of the first of each frame's
choices alone (GShard, Lepikhin et al., 2021), `importance` E sum P_i^2 (3M, You et al., 2022). Beside them the z-loss
mean logsumexp(logits)^2 (Zoph et al., 2022, equation 5) and the sparsity mean ||p / ||p||_2||_1 (SpeechMoE, You et al.,
2021), which falls from sqrt(E) to 1 as the router gets surer of every frame. Loss-free balance (Wang et al., 2024):
experts are chosen by p + bias and weighted by p; the bias follows the loads once per step.

Shapes: N packed valid frames, D model width, E experts, K experts per frame, M = N K choices.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

Balance = Literal["switch", "first_choice", "importance"]
# Width of a layer's embedding: its part in the logits is an offset per expert, for which a few dimensions suffice.
EMBEDDING_WIDTH = 16


class RouterConfig(BaseModel, frozen=True, extra="forbid"):
    scope: Literal["layer", "group", "global", "conditioned"] = Field(
        default="layer",
        description="who owns a router: each layer, each group, the encoder, or the encoder with a learned embedding "
        "of the layer beside the frame",
    )
    per_frame: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="experts that a frame is sent to (top-k)",
    )
    jitter: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="training noise: the input times U(1 - jitter, 1 + jitter)",
    )
    bias_rate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="step of the loss-free balance bias; 0 leaves it off",
    )


class ExpertsConfig(BaseModel, frozen=True, extra="forbid"):
    count: int = Field(
        default=4,
        ge=2,
        le=1024,
        description="experts of a block, shared by its layers",
    )
    placement: Literal["second", "first", "both"] = Field(
        default="second", description="which feed-forward layers of a block are experts"
    )
    router: RouterConfig = RouterConfig()
    balance: Balance = Field(default="switch", description="which balance loss is measured")
    balance_scope: Literal["layer", "group"] = Field(
        default="layer", description="measured for each layer, or over all frames of the layers of a group"
    )
    capacity_factor: float | None = Field(
        default=None,
        ge=0.001,
        le=1024,
        description="an expert takes at most this many even shares of a lane's choices in training; none: all",
    )
    residual: bool = Field(default=False, description="a dense feed-forward layer beside the experts, mixed per frame")
    initial: Literal["independent", "upcycled"] = Field(
        default="independent", description="experts start from draws of their own, or from one dense layer plus noise"
    )
    initial_noise: float = Field(
        default=0.02,
        gt=0,
        le=100,
        description="noise that sets upcycled experts apart, over the deviation of their weights",
    )

    @model_validator(mode="after")
    def _enough_experts(self):
        if self.router.per_frame > self.count:
            raise ValueError(
                f"router.per_frame is {self.router.per_frame} but there are only {self.count} experts: "
                f"choose at most {self.count}"
            )
        return self

    @property
    def places(self) -> tuple[str, ...]:
        """The feed-forward layers of a block that are experts, in the order in which a frame passes them."""
        if self.placement == "both":
            return ("first", "second")
        return (self.placement,)


class Routing(NamedTuple):
    """Where the frames of one layer go, and how evenly.

    experts_NK: int64, the chosen experts, the likeliest first. weights_NK: fp32, the weights of their outputs.
    counts_E: int64, choices per expert. probabilities_E: fp32, mean probability of each expert.

    Means over frames, fp32 scalars. z: of the squared logsumexp of the logits. entropy: of a frame's probabilities, in
    nats, detached. sparsity: of the L1 norm of a frame's L2-normed probabilities.

    kept_NK: bool, True at choices within the experts' capacity; None when all are kept.

    It is a tuple, because ZeRO-3's hooks find a module's output tensors only in the standard containers.
    """

    experts_NK: Tensor
    weights_NK: Tensor
    counts_E: Tensor
    probabilities_E: Tensor
    z: Tensor
    entropy: Tensor
    sparsity: Tensor
    kept_NK: Tensor | None

    def balance_loss(self, kind: Balance) -> Tensor:
        """1 when experts share the frames evenly, E when one takes all; 0 without frames."""
        num_experts = len(self.counts_E)
        if kind == "importance":
            return num_experts * self.probabilities_E.square().sum()

        # Counts have no gradient: the loss moves the probabilities of the experts that get many frames.
        counts_E = self.counts_E
        if kind == "first_choice":
            counts_E = count_choices(self.experts_NK[:, 0], num_experts)
        share_E = counts_E / counts_E.sum().clamp(min=1)
        return num_experts * (share_E * self.probabilities_E).sum()

    def kept_weights(self) -> Tensor:
        """What the choices of each frame that are carried out weigh together, [N, 1]."""
        weights_NK = self.weights_NK
        if self.kept_NK is not None:
            weights_NK = weights_NK * self.kept_NK
        return weights_NK.sum(dim=-1, keepdim=True)

    def sorted_choices(self) -> tuple[Tensor, Tensor]:
        """The indices of the N K choices, sorted by expert, those that are dropped last; and how many that are carried
        out each expert gets."""
        experts_M = self.experts_NK.flatten()
        if self.kept_NK is None:
            return experts_M.argsort(stable=True), self.counts_E
        # As if what is dropped went to one expert more: all choices keep their places, so that no size has to be known.
        num_experts = len(self.counts_E)
        experts_M = experts_M.where(self.kept_NK.flatten(), num_experts)
        counts = count_choices(experts_M, num_experts + 1)
        return experts_M.argsort(stable=True), counts[:num_experts]


def count_choices(experts_M: Tensor, num_experts: int) -> Tensor:
    """How often each expert was chosen [E], int64."""
    # Not bincount: on a GPU it looks for the largest element, and the host waits for the answer.
    ones_M = torch.ones_like(experts_M)
    return experts_M.new_zeros(num_experts).scatter_add_(0, experts_M, ones_M)


def pool(routings: Sequence[Routing]) -> Routing:
    """The routing of several layers with equally many frames, as if it were one layer's."""

    def column(name: str) -> list[Tensor]:
        return [getattr(routing, name) for routing in routings]

    # A router has a capacity in all layers or in none.
    kept_NK = None
    if routings[0].kept_NK is not None:
        kept_NK = torch.cat(column("kept_NK"))
    return Routing(
        experts_NK=torch.cat(column("experts_NK")),
        weights_NK=torch.cat(column("weights_NK")),
        counts_E=torch.stack(column("counts_E")).sum(0),
        probabilities_E=torch.stack(column("probabilities_E")).mean(0),
        z=torch.stack(column("z")).mean(),
        entropy=torch.stack(column("entropy")).mean(),
        sparsity=torch.stack(column("sparsity")).mean(),
        kept_NK=kept_NK,
    )


class Router(nn.Module):
    """A choice of experts, in fp32 whatever the precision around it.

    With `num_layers` it reads the frame beside a learned embedding of the layer (after the task-conditioned gate of
    M3ViT, Liang et al., 2022). Under a capacity factor c an expert takes at most ceil(c N K / E) choices in training,
    those of the highest probability and of equal ones the earliest (batch prioritized routing, Riquelme et al., 2021);
    the frames of the others pass it by. In evaluation all are taken: a transcript must not depend on its batch.
    """

    bias: Tensor

    def __init__(
        self,
        width: int,
        num_experts: int,
        config: RouterConfig,
        capacity_factor: float | None = None,
        num_layers: int = 0,
    ):
        super().__init__()
        self.config = config
        self.capacity_factor = capacity_factor

        if num_layers:
            width += EMBEDDING_WIDTH
        self.weight = nn.Parameter(torch.empty(num_experts, width))
        # Frames are normed, so that logits begin with variance 1.
        nn.init.normal_(self.weight, std=width**-0.5)

        self.embedding = None
        if num_layers:
            self.embedding = nn.Parameter(torch.randn(num_layers, EMBEDDING_WIDTH))
        # A buffer: it follows the loads and no gradient, and belongs to checkpoints.
        self.register_buffer("bias", torch.zeros(num_experts))

    def forward(self, x_ND: Tensor, layer: int = 0) -> Routing:
        """Choose experts for a layer's packed valid frames; padding must be gone before."""
        with torch.autocast(x_ND.device.type, enabled=False):
            x_ND = x_ND.float()
            if self.training and self.config.jitter:
                low = 1 - self.config.jitter
                high = 1 + self.config.jitter
                noise_ND = torch.empty_like(x_ND).uniform_(low, high)
                x_ND = x_ND * noise_ND
            if self.embedding is not None:
                embedding_D = self.embedding[layer].float()
                embedding_ND = embedding_D.expand(len(x_ND), -1)
                x_ND = torch.cat((x_ND, embedding_ND), dim=-1)
            # Frames last: a softmax along a last dimension as short as that of the experts takes CPUs ten times as
            # long.
            logits_EN = self.weight.float() @ x_ND.t()
            return self.choose(logits_EN)

    def choose(self, logits_EN: Tensor) -> Routing:
        """The routing of frames with these logits."""
        num_experts, num_frames = logits_EN.shape
        probabilities_EN = logits_EN.softmax(dim=0)
        logsumexp_N = logits_EN.logsumexp(dim=0)

        # The loss-free bias decides the choice, never the weight: it would bend the outputs (Wang et al., 2024).
        biased_EN = probabilities_EN + self.bias[:, None]
        experts_KN = biased_EN.topk(self.config.per_frame, dim=0).indices
        experts_NK = experts_KN.t()
        weights_NK = probabilities_EN.gather(0, experts_KN).t()

        kept_NK = None
        if self.training and self.capacity_factor:
            kept_NK = within_capacity(experts_NK, weights_NK, num_experts, self.capacity_factor)
        # Renormalised over a single choice the weight would be 1 whatever the logits are, and the router would get no
        # gradient from the loss.
        if self.config.per_frame > 1:
            weights_NK = weights_NK / weights_NK.sum(dim=-1, keepdim=True)

        # H(p) = -sum p log p = logsumexp(logits) - sum p logits
        weighted_EN = probabilities_EN.detach() * logits_EN.detach()
        entropy_N = logsumexp_N.detach() - weighted_EN.sum(0)
        # ||p / ||p||_2||_1 = 1 / ||p||_2, because ||p||_1 is 1
        sparsity_N = probabilities_EN.square().sum(0).rsqrt()

        num_averaged = max(num_frames, 1)  # sums over no frames are 0, and so shall be their means
        return Routing(
            experts_NK=experts_NK,
            weights_NK=weights_NK,
            counts_E=count_choices(experts_NK.flatten(), num_experts),
            probabilities_E=probabilities_EN.sum(1) / num_averaged,
            z=logsumexp_N.square().sum() / num_averaged,
            entropy=entropy_N.sum() / num_averaged,
            sparsity=sparsity_N.sum() / num_averaged,
            kept_NK=kept_NK,
        )

    @torch.no_grad()
    def rebalance(self, counts_E: Tensor) -> None:
        """Move the loss-free bias towards experts below the mean load; `counts_E` are those of all lanes of a step.

        That of a router whose weights are frozen stays where it is.
        """
        if self.config.bias_rate and self.weight.requires_grad:
            load_E = counts_E.to(self.bias)
            # By its sign alone, so that the step does not depend on the number of frames (Wang et al., 2024).
            direction_E = torch.sign(load_E.mean() - load_E)
            self.bias += self.config.bias_rate * direction_E


@torch.no_grad()
def within_capacity(
    experts_NK: Tensor,
    probabilities_NK: Tensor,
    num_experts: int,
    factor: float,
) -> Tensor:
    """[N, K] bool: the ceil(factor N K / E) likeliest choices of each expert, of equal ones the earliest."""
    num_choices = experts_NK.numel()
    # Rounded first: 1.1 x 10 is a little more than 11 in binary, and its ceiling would be 12.
    capacity = math.ceil(round(factor * num_choices / num_experts, 6))

    # Sorted by probability and then by expert; both sorts are stable, so that ties stay in the order of frames.
    experts_M = experts_NK.flatten()
    likeliest_M = probabilities_NK.flatten().argsort(descending=True, stable=True)
    by_expert_M = experts_M[likeliest_M].argsort(stable=True)
    order_M = likeliest_M[by_expert_M]

    # A choice's rank among those of its expert: its place in that order after its expert's first.
    counts_E = count_choices(experts_M, num_experts)
    start_E = counts_E.cumsum(0) - counts_E
    start_M = start_E[experts_M[order_M]]
    rank_M = torch.arange(num_choices, device=experts_M.device) - start_M

    kept_M = torch.empty(num_choices, dtype=torch.bool, device=experts_M.device)
    kept_M[order_M] = rank_M < capacity
    return kept_M.view_as(experts_NK)
