"""Routers send each frame to experts, and measure how evenly they do so.

Balance losses, with f_i the share of choices that fell on expert i and P_i its mean probability (E experts):
`switch` E sum f_i P_i (Fedus et al., 2021, equation 4), `importance` E sum P_i^2, and the z-loss
mean logsumexp(logits)^2 (Zoph et al., 2022, equation 5). Loss-free balance (Wang et al., 2024): experts are chosen by
p + bias and weighted by p; the bias follows the loads once per step.

Shapes: N packed valid frames, D model width, E experts, K experts per frame.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional


class RouterConfig(BaseModel, frozen=True, extra="forbid"):
    per_frame: int = Field(default=1, ge=1, description="experts that a frame is sent to (top-k)")
    jitter: float = Field(
        default=0.0, ge=0, lt=1, description="training noise: the input times U(1 - jitter, 1 + jitter)"
    )
    bias_rate: float = Field(default=0.0, ge=0, description="step of the loss-free balance bias; 0 leaves it off")


class ExpertsConfig(BaseModel, frozen=True, extra="forbid"):
    count: int = Field(default=4, ge=2, description="experts of a block, shared by its layers")
    router: RouterConfig = RouterConfig()
    balance: Literal["switch", "importance"] = Field(default="switch", description="which balance loss is measured")

    @model_validator(mode="after")
    def _enough_experts(self):
        if self.router.per_frame > self.count:
            raise ValueError(
                f"router.per_frame is {self.router.per_frame} but there are only {self.count} experts: "
                f"choose at most {self.count}"
            )
        return self


class Routing(NamedTuple):
    """Where the frames of one layer go, and how evenly.

    A tuple, because what shards weights over processes finds a module's output tensors only in the standard containers.

    experts_NK int64 chosen experts, weights_NK fp32 their weights, counts_E int64 choices per expert,
    probabilities_E fp32 mean probability, z fp32 scalar mean squared logsumexp, entropy fp32 scalar mean entropy of a
    frame's probabilities in nats (detached).
    """

    experts_NK: Tensor
    weights_NK: Tensor
    counts_E: Tensor
    probabilities_E: Tensor
    z: Tensor
    entropy: Tensor

    def balance_loss(self, kind: Literal["switch", "importance"]) -> Tensor:
        """1 when experts share the frames evenly, E when one takes all; 0 without frames."""
        num_experts = len(self.counts_E)
        if kind == "importance":
            return num_experts * self.probabilities_E.square().sum()
        share_E = self.counts_E / self.counts_E.sum().clamp(min=1)
        return num_experts * (share_E * self.probabilities_E).sum()


class Router(nn.Module):
    """A layer's own choice of experts, in fp32 whatever the precision around it."""

    bias: Tensor

    def __init__(self, width: int, num_experts: int, config: RouterConfig):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(num_experts, width))
        nn.init.normal_(self.weight, std=width**-0.5)
        self.register_buffer("bias", torch.zeros(num_experts))

    def forward(self, x_ND: Tensor) -> Routing:
        """Choose experts for packed valid frames; padding must be gone before."""
        with torch.autocast(x_ND.device.type, enabled=False):
            x_ND = x_ND.float()
            if self.training and self.config.jitter:
                low, high = 1 - self.config.jitter, 1 + self.config.jitter
                x_ND = x_ND * torch.empty_like(x_ND).uniform_(low, high)
            logits_NE = functional.linear(x_ND, self.weight.float())
            probabilities_NE = logits_NE.softmax(dim=-1)
            return self._choose(logits_NE, probabilities_NE)

    def _choose(self, logits_NE: Tensor, probabilities_NE: Tensor) -> Routing:
        num_frames, num_experts = probabilities_NE.shape
        experts_NK = (probabilities_NE + self.bias).topk(self.config.per_frame, dim=-1).indices
        weights_NK = probabilities_NE.gather(1, experts_NK)
        if self.config.per_frame > 1:
            # Over one choice this would be a constant 1 and the router would get no gradient.
            weights_NK = weights_NK / weights_NK.sum(dim=-1, keepdim=True)
        entropy_N = -(probabilities_NE * probabilities_NE.clamp(min=1e-9).log()).sum(-1)
        frames = max(num_frames, 1)
        return Routing(
            experts_NK,
            weights_NK,
            torch.bincount(experts_NK.flatten(), minlength=num_experts),
            probabilities_NE.sum(0) / frames,
            logits_NE.logsumexp(-1).square().sum() / frames,
            entropy_N.detach().sum() / frames,
        )

    @torch.no_grad()
    def rebalance(self, counts_E: Tensor) -> None:
        """Move the loss-free bias towards experts below the mean load; `counts_E` are those of all lanes of a step."""
        if self.config.bias_rate:
            load_E = counts_E.to(self.bias)
            self.bias += self.config.bias_rate * torch.sign(load_E.mean() - load_E)
