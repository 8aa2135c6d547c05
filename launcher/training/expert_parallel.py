"""Experts spread over the processes of a group, and the exchange of frames between them.

`spread_experts` leaves each process its share of every block's experts. It comes before the engine is built, and every
process must have started from the same weights. When the engine makes the process groups, `ExpertParallelMixture` gets
an `AllToAllDispatcher` over its own one: every frame travels to the process that holds its expert, in uneven splits and
without padding, and its result travels back. No frame is dropped on the way: an experts' capacity is the router's
matter, decided before anything travels.

The mixture is a subclass of DeepSpeed's AutoEP layer for its engine's sake, which makes the expert groups, averages the
experts' gradients over them, and cuts the experts in ZeRO by what that layer and its parameters carry. It computes what
the model's own mixture computes. The attributes are private to DeepSpeed: pyproject.toml pins the tested line.

Shapes: M choices of this process, sorted by expert, those that are dropped last, R rows that it receives, D model
width, P processes of the group, L experts of each.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from deepspeed.checkpoint.autoep_affine import (
    autoep_experts_for_rank,
    autoep_placement_to_affine_map,
    legacy_uniform_autoep_placement_descriptor,
)
from deepspeed.checkpoint.constants import (
    AFFINE_MAP,
    AUTOEP_EXPERT_PLACEMENT,
    AUTOEP_PARAM_EP_RANK,
    AUTOEP_PARAM_LOCAL_EXPERTS,
    AUTOEP_PARAM_LOGICAL_SHAPE,
    DS_AUTOEP_UC_META,
)
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from model.layers.permute_rows import gather_unique, scatter_unique
from model.masked_prediction import Model
from model.moe.experts import ExpertStack, LocalDispatcher, MixtureOfExperts
from model.moe.router import Routing


class _AllToAll(torch.autograd.Function):
    """Rows to other processes, and their gradients back again; splits may be uneven and zero.

    Not torch's own: torch.distributed.nn.functional.all_to_all_single computes the same to the bit, but torch 2.14
    deprecates it, which every process would warn of. Its successor is in a private module and hands out tensors that
    wait for the collective only when they are first used.
    """

    @staticmethod
    def forward(
        context,
        x: Tensor,
        group: dist.ProcessGroup,
        num_sent_P: list[int],
        num_received_P: list[int],
    ):
        context.group = group
        context.num_sent_P = num_sent_P
        context.num_received_P = num_received_P
        received = x.new_empty(sum(num_received_P), x.shape[1])
        dist.all_to_all_single(received, x.contiguous(), num_received_P, num_sent_P, group=group)
        return received

    @staticmethod
    @once_differentiable
    def backward(context, gradient: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        returned = gradient.new_empty(sum(context.num_sent_P), gradient.shape[1])
        dist.all_to_all_single(
            returned,
            gradient.contiguous(),
            context.num_sent_P,
            context.num_received_P,
            group=context.group,
        )
        return returned, None, None, None


@dataclass(frozen=True)
class AnnouncedCounts:
    """How many frames this process sends to and receives from each expert; being exchanged until they are read.

    `sizes_2P`, on the host: rows sent to and received from each process, there once `copied` is over.
    """

    received_PL: Tensor
    sent_PL: Tensor
    exchange: dist.Work | None
    sizes_2P: Tensor | None = None
    copied: torch.cuda.Event | None = None

    def read(self) -> tuple[list[int], list[int]]:
        """Rows sent to and received from each process. The host waits here."""
        if self.sizes_2P is not None and self.copied is not None:
            self.copied.synchronize()
            num_sent_P, num_received_P = self.sizes_2P.tolist()
            return num_sent_P, num_received_P
        if self.exchange is not None:
            self.exchange.wait()
        return self.sent_PL.sum(1).tolist(), self.received_PL.sum(1).tolist()


@dataclass(frozen=True)
class AllToAllMetadata:
    """How frames travelled: rows sent to and received from each process, how what was received was reordered, and the
    rows of dropped choices, which did not travel."""

    num_sent_P: list[int]
    num_received_P: list[int]
    order_R: Tensor
    num_dropped: int


class AllToAllDispatcher:
    """Frames travel to the process of the group that holds their expert, and back."""

    def __init__(self, group: dist.ProcessGroup, num_local_experts: int):
        self.group = group
        self.group_size = dist.get_world_size(group)
        self.num_local_experts = num_local_experts

    def announce(self, counts_E: Tensor) -> AnnouncedCounts:
        sent_PL = counts_E.view(self.group_size, self.num_local_experts)
        received_PL = torch.empty_like(sent_PL)
        exchange = dist.all_to_all_single(received_PL, sent_PL, group=self.group, async_op=True)
        if not counts_E.is_cuda:
            return AnnouncedCounts(received_PL, sent_PL, exchange)

        # The collective takes its splits as lists, so the host must have them, and waits for this copy alone: what is
        # queued after it, such as a dense layer beside the experts, runs on.
        if exchange is not None:
            exchange.wait()
        sizes_2P = torch.stack((sent_PL.sum(1), received_PL.sum(1)))
        on_host_2P = torch.empty(sizes_2P.shape, dtype=sizes_2P.dtype, pin_memory=True)
        on_host_2P.copy_(sizes_2P, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return AnnouncedCounts(received_PL, sent_PL, None, on_host_2P, copied)

    def dispatch(self, x_MD: Tensor, announced: AnnouncedCounts) -> tuple[Tensor, Tensor, AllToAllMetadata]:
        num_sent_P, num_received_P = announced.read()
        received_PL = announced.received_PL
        num_sent = sum(num_sent_P)
        num_received = sum(num_received_P)
        by_sender_RD = _AllToAll.apply(x_MD[:num_sent], self.group, num_sent_P, num_received_P)

        # What arrives is sorted by sender, then by expert; experts want it sorted by expert.
        expert_PL = torch.arange(self.num_local_experts, device=x_MD.device).repeat(self.group_size)
        expert_R = expert_PL.repeat_interleave(received_PL.flatten(), output_size=num_received)
        order_R = expert_R.argsort(stable=True)

        metadata = AllToAllMetadata(num_sent_P, num_received_P, order_R, len(x_MD) - num_sent)
        return gather_unique(by_sender_RD, order_R), received_PL.sum(0), metadata

    def combine(self, y_RD: Tensor, metadata: AllToAllMetadata) -> Tensor:
        by_sender_RD = scatter_unique(y_RD, metadata.order_R, len(y_RD))
        y_MD = _AllToAll.apply(by_sender_RD, self.group, metadata.num_received_P, metadata.num_sent_P)
        if metadata.num_dropped:
            y_MD = functional.pad(y_MD, (0, 0, 0, metadata.num_dropped))
        return y_MD


class ExpertParallelMixture(MixtureOfExperts, AutoEPMoELayer):
    """A block's mixture of which this process holds `num_local_experts` experts; the mathematics is the model's own."""

    def __init__(
        self,
        whole: MixtureOfExperts,
        expert_parallel: int,
        rank: int,
    ):
        # Not AutoEPMoELayer's, which would build experts of its own from a configuration of DeepSpeed's.
        nn.Module.__init__(self)
        self.num_experts = whole.num_experts
        self.num_local_experts = whole.num_experts // expert_parallel
        self.ep_size = expert_parallel
        # DeepSpeed's expert groups are of consecutive ranks.
        self.ep_rank = rank % expert_parallel
        first_expert = self.ep_rank * self.num_local_experts
        self.experts = ExpertStack(self.num_local_experts, whole.experts.w1.shape[2], whole.experts.hidden)
        with torch.no_grad():
            for local, all_experts in zip(self.experts.parameters(), whole.experts.parameters(), strict=True):
                local.copy_(all_experts[first_expert : first_expert + self.num_local_experts])
        # The process groups are the engine's, which is built later: see `set_deepspeed_parallelism`.
        self.dispatcher = LocalDispatcher()

        # What DeepSpeed's engine reads of an AutoEP layer:
        self.ep_group_name = f"ep_size_{expert_parallel}"
        self.ep_group = None
        self.folding_group_handles = None
        self.tp_group = None
        self.combine_impl = "weighted_sum"
        self.comm_backend = "comm"
        self._deepep_exchange = None
        self.expert_placement_descriptor = legacy_uniform_autoep_placement_descriptor(
            self.num_experts, self.num_local_experts, expert_parallel
        )

        # And what ZeRO and the engine's checkpoints read of its parameters:
        placement = self.expert_placement_descriptor
        local_experts = list(autoep_experts_for_rank(placement, self.ep_rank))
        for parameter in self.experts.parameters():
            whole_shape = [self.num_experts, *parameter.shape[1:]]
            affine_map = autoep_placement_to_affine_map(placement, whole_shape)
            # The first keeps the gradient out of the average over all processes: only those that hold the same experts
            # add theirs up.
            marks = {
                "allreduce": False,
                "group_name": self.ep_group_name,
                "ds_zero_placement_family": "autoep_expert",
                "ds_zero_partition_group_name": self.ep_group_name,
                DS_AUTOEP_UC_META: {
                    AUTOEP_EXPERT_PLACEMENT: placement,
                    AFFINE_MAP: affine_map.to_dict(),
                    AUTOEP_PARAM_LOGICAL_SHAPE: whole_shape,
                    AUTOEP_PARAM_EP_RANK: self.ep_rank,
                    AUTOEP_PARAM_LOCAL_EXPERTS: local_experts,
                },
            }
            for name, value in marks.items():
                setattr(parameter, name, value)

    def set_deepspeed_parallelism(self, *arguments, **options) -> None:
        """Called by the engine: make the expert groups, then dispatch frames over this process's one."""
        AutoEPMoELayer.set_deepspeed_parallelism(self, *arguments, **options)
        assert self.ep_group is not None
        self.dispatcher = AllToAllDispatcher(self.ep_group, self.num_local_experts)

    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return MixtureOfExperts.forward(self, x_ND, routing)


def spread_experts(
    model: Model,
    expert_parallel: int,
    rank: int,
) -> None:
    """Leave this process its share of every block's experts. Every process must start from the same weights.

    A dense layer beside the experts stays whole, like all else.
    """
    if expert_parallel == 1:
        return
    # Lists, because modules are replaced on the way.
    for parent in list(model.encoder.blocks.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MixtureOfExperts):
                setattr(parent, name, ExpertParallelMixture(child, expert_parallel, rank))
