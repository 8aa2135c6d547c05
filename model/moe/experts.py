"""A block's experts: one stack of feed-forward layers for all layers of the group, which the routers choose from.

Every choice that the routing keeps is carried out; it keeps all unless the router has a capacity. A token dispatcher
brings frames to the process that holds their expert, and the results back; `LocalDispatcher` is for one process.

On a GPU in bf16 the host waits for nothing: how many frames an expert gets stays on the device, and a choice that is
dropped keeps its row. Loops over experts need the counts on the host.

Shapes: N packed valid frames, K experts per frame, D model width, F feed-forward width, E experts held here, R rows
that one expert multiplies, M = N K choices sorted by expert, those that are dropped last.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from model.layers.feedforward import FeedForward
from model.layers.permute_rows import inverse_of, permute, permute_copies
from model.moe.router import ExpertsConfig, Routing
from model.moe.row_padding import expert_rows

# The grouped product of a GPU takes rows whose bytes are a multiple of 16.
GROUPED_ALIGNMENT = 8


class TokenDispatcher(Protocol):
    """Brings sorted frames to their experts and back. It keeps nothing: what `combine` needs is the metadata."""

    def announce(self, counts_E: Tensor, /) -> Any:
        """Begin to tell the other processes how many frames go to each expert; returns what `dispatch` needs of it.

        Until then other work may be done.
        """
        ...

    def dispatch(self, x_MD: Tensor, announced: Any, /) -> tuple[Tensor, Tensor, Any]:
        """Frames sorted by expert on their way out, as many for each expert as were announced.

        Returns the frames that the experts held here get, sorted by expert, their number for each of these experts, and
        metadata for `combine`. Rows beyond their sum are those of dropped choices.
        """
        ...

    def combine(self, y_MD: Tensor, metadata: Any, /) -> Tensor:
        """The experts' results, in the order of the frames that `dispatch` was given when it returned `metadata`."""
        ...


class LocalDispatcher:
    """All experts are held here: frames stay where they are."""

    def announce(self, counts_E: Tensor) -> Tensor:
        return counts_E

    def dispatch(self, x_MD: Tensor, announced: Tensor) -> tuple[Tensor, Tensor, None]:
        return x_MD, announced, None

    def combine(self, y_MD: Tensor, metadata: None) -> Tensor:
        return y_MD


class ExpertStack(nn.Module):
    """The weights of E feed-forward experts as stacks: w1 [E, F, D], w2 [E, D, F], w3 [E, 1, F + D] (both biases)."""

    def __init__(
        self,
        num_experts: int,
        width: int,
        hidden: int,
    ):
        super().__init__()
        self.hidden = hidden
        self.w1 = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.w2 = nn.Parameter(torch.empty(num_experts, width, hidden))
        self.w3 = nn.Parameter(torch.zeros(num_experts, 1, hidden + width))
        # Experts that start equal never part: each is drawn on its own, as nn.Linear would draw it.
        bound1 = width**-0.5
        bound2 = hidden**-0.5
        nn.init.uniform_(self.w1, -bound1, bound1)
        nn.init.uniform_(self.w2, -bound2, bound2)

    @torch.no_grad()
    def start_alike(self, noise: float) -> None:
        """Make every expert the first one plus noise, of `noise` standard deviations of its weights."""
        for stack in (self.w1, self.w2):
            first = stack[:1]
            deviation = noise * first.std()
            drawn = torch.randn_like(stack)
            stack.copy_(first + deviation * drawn)

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Multiply every expert's second linear layer."""
        self.w2 *= factor
        self.w3[..., self.hidden :] *= factor

    def forward(self, x_MD: Tensor, counts_E: Tensor) -> Tensor:
        """Frames sorted by expert, `counts_E[e]` of them for expert e, to the experts' outputs in the same order.

        Rows beyond their sum are of no meaning, and finite.
        """
        if len(x_MD) == 0:
            # No grouped product, which needs rows, and nothing to read from the device.
            return _ExpertByExpert.apply(x_MD, self.w1, self.w2, self.w3, [0] * len(counts_E))
        if self.is_grouped(x_MD):
            return self._grouped(x_MD, counts_E)
        return _ExpertByExpert.apply(x_MD, self.w1, self.w2, self.w3, counts_E.tolist())

    def is_grouped(self, x_MD: Tensor) -> bool:
        """Whether all experts are multiplied in one grouped product.

        It is one kernel on GPUs, in bf16 alone: of other types torch makes a loop there, which waits for the counts
        too. On CPUs one call per expert is faster.
        """
        if not x_MD.is_cuda or x_MD.dtype != torch.bfloat16:
            return False
        return x_MD.shape[1] % GROUPED_ALIGNMENT == 0 and self.hidden % GROUPED_ALIGNMENT == 0

    def _grouped(self, x_MD: Tensor, counts_E: Tensor) -> Tensor:
        dtype = x_MD.dtype
        w1 = self.w1.to(dtype)
        w2 = self.w2.to(dtype)
        w1_EDF = w1.transpose(1, 2)
        w2_EFD = w2.transpose(1, 2)
        biases_EH = self.w3.squeeze(1).to(dtype)

        num_rows, width = x_MD.shape
        biases1_EF, biases2_ED = biases_EH.split((self.hidden, width), dim=-1)
        ends_E = counts_E.cumsum(0)
        offsets_E = ends_E.to(torch.int32)
        # The product would leave the rows of no expert as the memory was, which may be no numbers at all.
        offsets_E[-1:] = num_rows

        # The product takes no biases. A row of zeros with a single one, times all of them, is exactly its expert's, and
        # the gradient of that is a product too: by index it would be a sum of rows that all meet in a few.
        rows_M1 = torch.arange(num_rows, device=x_MD.device)[:, None]
        starts_E = ends_E - counts_E
        is_expert_ME = (rows_M1 >= starts_E) & (rows_M1 < ends_E)
        is_expert_ME = is_expert_ME.to(dtype)

        hidden_MF = functional.grouped_mm(x_MD, w1_EDF, offs=offsets_E)
        hidden_MF = torch.addmm(hidden_MF, is_expert_ME, biases1_EF)
        active_MF = functional.silu(hidden_MF)
        output_MD = functional.grouped_mm(active_MF, w2_EFD, offs=offsets_E)
        return torch.addmm(output_MD, is_expert_ME, biases2_ED)


class _ExpertByExpert(torch.autograd.Function):
    """The feed-forward layer of one expert after the other, each on its rows.

    Why not autograd: it would keep a copy of every stack in the frames' dtype for each use of a shared block, and add
    each expert's gradient to a stack of zeros. Here an expert's weights are converted when its turn comes, in both
    passes, and its gradients are written straight to their place in the stacks.

    Products may reach into the rows of later experts (`model/moe/row_padding.py`).
    """

    @staticmethod
    def forward(
        context,
        x: Tensor,
        w1: Tensor,
        w2: Tensor,
        w3: Tensor,
        counts: list[int],
    ) -> Tensor:  # pyright: ignore
        _, feedforward_width, width = w1.shape
        rows_of_experts = expert_rows(counts, x)
        # The padding of the last experts may reach past the end of x.
        num_rows = len(x)
        for rows in rows_of_experts:
            num_rows = max(num_rows, rows.end)
        hidden = x.new_empty(num_rows, feedforward_width)
        output = x.new_empty(num_rows, width)
        num_carried_out = sum(counts)
        biases = w3.squeeze(1).to(x.dtype)
        biases1, biases2 = biases.split((feedforward_width, width), dim=-1)

        for expert, rows in enumerate(rows_of_experts):
            x_RD = rows.select(x)
            hidden_RF = rows.select(hidden)
            weights1 = w1[expert].to(x.dtype)
            torch.addmm(biases1[expert], x_RD, weights1.t(), out=hidden_RF)

            # The activated rows are not kept: they are as wide as the hidden ones, and SiLU is cheap to compute again.
            active_RF = functional.silu(hidden_RF)
            output_RD = rows.select(output)
            weights2 = w2[expert].to(x.dtype)
            torch.addmm(biases2[expert], active_RF, weights2.t(), out=output_RD)

        context.save_for_backward(x, w1, w2, w3, hidden)
        context.rows_of_experts = rows_of_experts
        context.num_carried_out = num_carried_out
        output = output[: len(x)]
        output[num_carried_out:] = 0
        return output

    @staticmethod
    @once_differentiable
    def backward(context, gradient: Tensor):  # pyright: ignore
        x, w1, w2, w3, hidden = context.saved_tensors
        num_frames, width = x.shape
        grad_x = x.new_empty(len(hidden), width)
        grad_w1 = torch.empty_like(w1)
        grad_w2 = torch.empty_like(w2)
        grad_w3 = torch.empty_like(w3)
        # Frozen experts hand on the gradient of their input alone: half of the products.
        learns = any(context.needs_input_grad[1:4])

        for expert, rows in enumerate(context.rows_of_experts):
            grad_output_RD = rows.select(gradient)
            hidden_RF = rows.select(hidden)

            # Weights' gradients add up rows, and those of the padding are other experts': zeros on one side of each
            # product keep them out. The gradient of x does not: later experts overwrite what it leaves in their rows.
            if learns:
                active_RF = functional.silu(hidden_RF)
                rows.zero_padding(active_RF)
                _multiply_into(grad_w2[expert], grad_output_RD.t(), active_RF)

            weights2 = w2[expert].to(x.dtype)
            grad_active_RF = grad_output_RD @ weights2
            # Written over its argument, which is not needed again.
            grad_hidden_RF = torch.ops.aten.silu_backward.grad_input(
                grad_active_RF,
                hidden_RF,
                grad_input=grad_active_RF,
            )
            if learns:
                rows.zero_padding(grad_hidden_RF)
                x_RD = rows.select(x)
                _multiply_into(grad_w1[expert], grad_hidden_RF.t(), x_RD)
                grad_bias1_F = grad_hidden_RF.sum(0)
                grad_bias2_D = grad_output_RD[: rows.num_frames].sum(0)
                grad_w3[expert, 0] = torch.cat((grad_bias1_F, grad_bias2_D))

            weights1 = w1[expert].to(x.dtype)
            grad_x_RD = rows.select(grad_x)
            torch.mm(grad_hidden_RF, weights1, out=grad_x_RD)
        grad_x = grad_x[:num_frames]
        grad_x[context.num_carried_out :] = 0
        if not learns:
            return grad_x, None, None, None, None
        return grad_x, grad_w1, grad_w2, grad_w3, None


def _multiply_into(
    output: Tensor,
    first: Tensor,
    second: Tensor,
) -> None:
    """Write the product to `output`, which may have another dtype: mm(out=...) demands the factors' own."""
    if output.dtype == first.dtype:
        torch.mm(first, second, out=output)
    else:
        output.copy_(first @ second)


class SortedChoices(NamedTuple):
    """Frames on their way to experts.

    x_MD: one row for each choice, in the order `order_M` of choices, which `inverse_M` undoes. announced: what the
    dispatcher needs to send them.
    """

    x_MD: Tensor
    order_M: Tensor
    inverse_M: Tensor
    announced: Any


class MixtureOfExperts(nn.Module):
    """y = sum over chosen experts of weight x expert(x). The routing is handed in: routers belong to layers."""

    def __init__(
        self,
        num_experts: int,
        width: int,
        hidden: int,
    ):
        super().__init__()
        self.num_experts = num_experts
        self.experts = ExpertStack(num_experts, width, hidden)
        # Where experts are spread over processes, a module with another dispatcher takes this one's place.
        self.dispatcher: TokenDispatcher = LocalDispatcher()

    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """Packed valid frames [N, D] to [N, D]."""
        return self.finish(self.begin(x_ND, routing), routing)

    def begin(self, x_ND: Tensor, routing: Routing) -> SortedChoices:
        """Sort the frames by expert; the other processes are being told how many they get. `finish` does the rest."""
        per_frame = routing.experts_NK.shape[1]
        order_M, counts_E = routing.sorted_choices()
        announced = self.dispatcher.announce(counts_E)
        inverse_M = inverse_of(order_M)
        # One row for each choice.
        x_MD = permute_copies(x_ND, order_M, inverse_M, per_frame)
        return SortedChoices(x_MD, order_M, inverse_M, announced)

    def finish(self, choices: SortedChoices, routing: Routing) -> Tensor:
        """The weighted sum of the experts' outputs for each frame [N, D]."""
        received_MD, local_counts_E, metadata = self.dispatcher.dispatch(choices.x_MD, choices.announced)
        y_MD = self.experts(received_MD, local_counts_E)
        y_MD = self.dispatcher.combine(y_MD, metadata)

        # Back to the order of frames.
        y_MD = permute(y_MD, choices.inverse_M, choices.order_M)
        weights_NK = routing.weights_NK
        if routing.kept_NK is not None:
            # Choices that were dropped add nothing, and their rows have no gradient.
            weights_NK = weights_NK * routing.kept_NK
        # Routers are fp32, and a product with their weights would be too.
        weights_M1 = weights_NK.reshape(-1, 1).to(y_MD.dtype)
        weighted_MD = y_MD * weights_M1
        per_frame = routing.experts_NK.shape[1]
        if per_frame == 1:
            return weighted_MD
        return weighted_MD.unflatten(0, (-1, per_frame)).sum(1)


class ResidualMixture(nn.Module):
    """y = c0 experts(x) + c1 dense(x), c = softmax of a linear layer of x (PR-MoE, Rajbhandari et al., 2022)."""

    def __init__(
        self,
        mixture: MixtureOfExperts,
        width: int,
        hidden: int,
    ):
        super().__init__()
        self.mixture = mixture
        self.dense = FeedForward(width, hidden)
        self.coefficients = nn.Linear(width, 2)

    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """Packed valid frames [N, D] to [N, D]."""
        choices = self.mixture.begin(x_ND, routing)
        # While processes tell each other how many frames they send.
        dense_ND = self.dense(x_ND)
        experts_ND = self.mixture.finish(choices, routing)
        logits_N2 = self.coefficients(x_ND)
        # In fp32, as the router's probabilities.
        coefficients_N2 = logits_N2.float().softmax(dim=-1)
        coefficients_N2 = coefficients_N2.to(experts_ND.dtype)
        experts_share_N1 = coefficients_N2[:, :1]
        dense_share_N1 = coefficients_N2[:, 1:]
        return experts_share_N1 * experts_ND + dense_share_N1 * dense_ND


def build_experts(
    config: ExpertsConfig,
    width: int,
    hidden: int,
) -> MixtureOfExperts | ResidualMixture:
    """The module that stands in place of a feed-forward layer."""
    mixture = MixtureOfExperts(config.count, width, hidden)
    if config.initial == "upcycled":
        mixture.experts.start_alike(config.initial_noise)
    if config.residual:
        return ResidualMixture(mixture, width, hidden)
    return mixture
