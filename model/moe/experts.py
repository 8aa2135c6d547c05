"""A block's experts: one stack of feed-forward layers that all layers of the group use, each as its router says.

Every choice of expert that the routing keeps is carried out, and it keeps all unless its router has a capacity. What
moves frames to the process that holds an expert is an exchange; `LocalExchange` keeps them where they are.

Shapes: N packed valid frames, K experts per frame, D model width, F feed-forward width, E experts held here,
M kept choices, N K without a capacity, sorted by expert.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from model.layers.feedforward import FeedForward
from model.layers.permute_rows import gather_unique, scatter_unique
from model.moe.router import ExpertsConfig, Routing
from model.moe.row_padding import expert_rows


class TokenDispatcher(Protocol):
    """Brings sorted frames to their experts and back."""

    def dispatch(self, x_MD: Tensor, counts: Tensor) -> tuple[Tensor, list[int]]:
        """Frames sorted by expert, and how many each expert gets, to frames sorted by held expert and their counts."""
        ...

    def combine(self, y_MD: Tensor) -> Tensor:
        """Undo the last dispatch: results return to the order of the frames that were dispatched."""
        ...


class LocalDispatcher:
    """All experts are held here."""

    def dispatch(self, x_MD: Tensor, counts: Tensor) -> tuple[Tensor, list[int]]:
        return x_MD, counts.tolist()

    def combine(self, y_MD: Tensor) -> Tensor:
        return y_MD


class ExpertStack(nn.Module):
    """The weights of E feed-forward experts as stacks: w1 [E, F, D], w2 [E, D, F], w3 [E, 1, F + D] (both biases)."""

    def __init__(self, num_experts: int, width: int, hidden: int):
        super().__init__()
        self.hidden = hidden
        self.w1 = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.w2 = nn.Parameter(torch.empty(num_experts, width, hidden))
        self.w3 = nn.Parameter(torch.zeros(num_experts, 1, hidden + width))
        # Experts that start equal never part: each is drawn on its own, as nn.Linear would draw it.
        nn.init.uniform_(self.w1, -(width**-0.5), width**-0.5)
        nn.init.uniform_(self.w2, -(hidden**-0.5), hidden**-0.5)

    @torch.no_grad()
    def start_alike(self, noise: float) -> None:
        """Every expert becomes the first one plus noise of `noise` deviations of its weights."""
        for stack in (self.w1, self.w2):
            stack.copy_(stack[:1] + noise * stack[:1].std() * torch.randn_like(stack))

    def forward(self, x_MD: Tensor, counts: list[int]) -> Tensor:
        """Frames sorted by expert, `counts[e]` of them for expert e, to the experts' outputs in the same order."""
        # One call per expert is faster on CPUs than one grouped product; on GPUs the product is one kernel.
        if x_MD.is_cuda and x_MD.dtype == torch.bfloat16:
            return self._grouped(x_MD, counts)
        return _OneByOne.apply(x_MD, self.w1, self.w2, self.w3, counts)

    def _grouped(self, x_MD: Tensor, counts: list[int]) -> Tensor:
        dtype = x_MD.dtype
        w1, w2, biases_EH = self.w1.to(dtype), self.w2.to(dtype), self.w3.squeeze(1).to(dtype)
        counts_E = torch.tensor(counts, device=x_MD.device)
        ends_E = counts_E.cumsum(0).to(torch.int32)
        biases_MH = biases_EH.repeat_interleave(counts_E, dim=0, output_size=len(x_MD))
        bias1_MF, bias2_MD = biases_MH.split((self.hidden, w2.shape[1]), dim=-1)
        hidden_MF = functional.grouped_mm(x_MD, w1.transpose(1, 2), offs=ends_E) + bias1_MF
        output_MD = functional.grouped_mm(functional.silu(hidden_MF), w2.transpose(1, 2), offs=ends_E)
        return output_MD + bias2_MD


class _OneByOne(torch.autograd.Function):
    """Every expert's feed-forward layer on its share of the frames.

    An expert's weights are converted to the dtype of the frames when its turn comes, both ways, and its gradients back
    to theirs, straight to their place in the stacks: a stack is read and written once, and no copy of it is kept.

    Products may reach into the rows of the next experts, which come later (`model/moe/row_padding.py`).
    """

    @staticmethod
    def forward(context, x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, counts: list[int]) -> Tensor:  # pyright: ignore
        shares = expert_rows(counts, x)
        num_rows = max(len(x), *(share.start + share.rows for share in shares))
        hidden, output = x.new_empty(num_rows, w1.shape[1]), x.new_empty(num_rows, w2.shape[1])
        biases1, biases2 = w3.squeeze(1).to(x.dtype).split((w1.shape[1], w2.shape[1]), dim=-1)
        for weights1, weights2, bias1, bias2, share in zip(w1, w2, biases1, biases2, shares, strict=True):
            hidden_e = share.of(hidden)
            torch.addmm(bias1, share.of(x), weights1.to(x.dtype).t(), out=hidden_e)
            torch.addmm(bias2, functional.silu(hidden_e), weights2.to(x.dtype).t(), out=share.of(output))
        context.save_for_backward(x, w1, w2, w3, hidden)
        context.shares = shares
        return output[: len(x)]

    @staticmethod
    @once_differentiable
    def backward(context, gradient: Tensor):  # pyright: ignore
        x, w1, w2, w3, hidden = context.saved_tensors
        of_x, of_w1, of_w2, of_w3 = x.new_empty(len(hidden), x.shape[1]), *map(torch.empty_like, (w1, w2, w3))
        for expert, share in enumerate(context.shares):
            gradient_e, hidden_e = share.of(gradient), share.of(hidden)
            active = functional.silu(hidden_e)  # again, as SiluLinear does
            share.clear_others(active)
            _multiply_into(of_w2[expert], gradient_e.t(), active)
            of_active = gradient_e @ w2[expert].to(x.dtype)
            of_hidden = torch.ops.aten.silu_backward.grad_input(of_active, hidden_e, grad_input=of_active)
            share.clear_others(of_hidden)
            _multiply_into(of_w1[expert], of_hidden.t(), share.of(x))
            of_w3[expert, 0] = torch.cat((of_hidden.sum(0), gradient_e[: share.frames].sum(0)))
            torch.mm(of_hidden, w1[expert].to(x.dtype), out=share.of(of_x))
        return of_x[: len(x)], of_w1, of_w2, of_w3, None


def _multiply_into(scatter_unique: Tensor, first: Tensor, second: Tensor) -> None:
    if scatter_unique.dtype == first.dtype:
        torch.mm(first, second, out=scatter_unique)
    else:
        scatter_unique.copy_(first @ second)


class MixtureOfExperts(nn.Module):
    """y = sum over chosen experts of weight x expert(x). The routing is handed in: routers belong to layers."""

    def __init__(self, num_experts: int, width: int, hidden: int):
        super().__init__()
        self.num_experts = num_experts
        self.experts = ExpertStack(num_experts, width, hidden)
        self.exchange: TokenDispatcher = LocalDispatcher()

    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """Packed valid frames [N, D] to [N, D]."""
        num_frames, per_frame = routing.experts_NK.shape
        order_M, counts_E = routing.dispatched()
        # A row for each choice. They change places and only then are added up: no gradient needs an index of frames.
        choices_MD = x_ND if per_frame == 1 else x_ND[:, None].expand(-1, per_frame, -1).flatten(0, 1)
        received, counts = self.exchange.dispatch(gather_unique(choices_MD, order_M), counts_E)
        y_MD = self.exchange.combine(self.experts(received, counts))
        weights_M1 = gather_unique(routing.weights_NK.reshape(-1, 1), order_M)
        weighted_MD = y_MD * weights_M1.to(y_MD.dtype)
        choices_MD = scatter_unique(weighted_MD, order_M, num_frames * per_frame)
        return choices_MD if per_frame == 1 else choices_MD.view(num_frames, per_frame, x_ND.shape[1]).sum(1)


class ResidualMixture(nn.Module):
    """y = c0 experts(x) + c1 dense(x), c = softmax of a linear layer of x (PR-MoE, Rajbhandari et al., 2022)."""

    def __init__(self, mixture: MixtureOfExperts, width: int, hidden: int):
        super().__init__()
        self.mixture = mixture
        self.dense = FeedForward(width, hidden)
        self.coefficients = nn.Linear(width, 2)

    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """Packed valid frames [N, D] to [N, D]."""
        experts_ND, dense_ND = self.mixture(x_ND, routing), self.dense(x_ND)
        share_N2 = self.coefficients(x_ND).float().softmax(dim=-1).to(experts_ND.dtype)
        return share_N2[:, :1] * experts_ND + share_N2[:, 1:] * dense_ND


def build_experts(config: ExpertsConfig, width: int, hidden: int) -> MixtureOfExperts | ResidualMixture:
    """What stands in place of a feed-forward layer."""
    mixture = MixtureOfExperts(config.count, width, hidden)
    if config.initial == "upcycled":
        mixture.experts.start_alike(config.initial_noise)
    return ResidualMixture(mixture, width, hidden) if config.residual else mixture
