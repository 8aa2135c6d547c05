"""Experts spread over processes."""

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

from model.layers.permute_rows import gather_unique, scatter_unique
from model.masked_prediction import Model
from model.moe.experts import ExpertStack, LocalDispatcher, MixtureOfExperts


class _AllToAll(torch.autograd.Function):
    """Rows to other processes and back again in the backward pass; splits may be uneven and zero."""

    @staticmethod
    def forward(context, x, group, sent: list[int], received: list[int]):
        context.group, context.sent, context.received = group, sent, received
        output = x.new_empty(sum(received), *x.shape[1:])
        dist.all_to_all_single(output, x.contiguous(), received, sent, group=group)
        return output

    @staticmethod
    def backward(context, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        output = gradient.new_empty(sum(context.sent), *gradient.shape[1:])
        dist.all_to_all_single(output, gradient.contiguous(), context.sent, context.received, group=context.group)
        return output, None, None, None


class AllToAllDispatcher:
    """Frames travel to the process of the group that holds their expert (all of them, uneven splits) and back."""

    def __init__(self, group: dist.ProcessGroup, num_local_experts: int):
        self.group, self.size, self.num_local = group, dist.get_world_size(group), num_local_experts

    def dispatch(self, x_MD: Tensor, counts: Tensor) -> tuple[Tensor, list[int]]:
        counts_PL = counts.view(self.size, self.num_local)
        received_PL = torch.empty_like(counts_PL)
        dist.all_to_all_single(received_PL, counts_PL, group=self.group)
        self.sent, self.received = counts_PL.sum(1).tolist(), received_PL.sum(1).tolist()
        arrived = _AllToAll.apply(x_MD, self.group, self.sent, self.received)
        # What arrives is sorted by sender, then expert; experts want it sorted by expert.
        expert = torch.arange(self.num_local, device=x_MD.device).repeat(self.size)
        self.order = expert.repeat_interleave(received_PL.flatten()).argsort(stable=True)
        return gather_unique(arrived, self.order), received_PL.sum(0).tolist()

    def combine(self, y_MD: Tensor) -> Tensor:
        by_sender = scatter_unique(y_MD, self.order, len(y_MD))
        return _AllToAll.apply(by_sender, self.group, self.received, self.sent)


class ExpertParallelMixture(MixtureOfExperts, AutoEPMoELayer):
    """A block's mixture of which this process holds `num_local_experts` experts; the mathematics is the model's own."""

    def __init__(self, whole: MixtureOfExperts, expert_parallel: int, rank: int):
        nn.Module.__init__(self)
        self.num_experts = whole.num_experts
        self.num_local_experts = whole.num_experts // expert_parallel
        self.ep_size, self.ep_rank = expert_parallel, rank % expert_parallel
        self.experts = _local_stack(whole.experts, self.ep_rank, self.num_local_experts)
        self.exchange = LocalDispatcher()  # until the engine has made the process groups
        # What DeepSpeed's engine reads of an AutoEP layer:
        self.ep_group_name, self.ep_group = f"ep_size_{expert_parallel}", None
        self.folding_group_handles, self.tp_group = None, None
        self.combine_impl, self.comm_backend, self._deepep_exchange = "weighted_sum", "comm", None
        self.expert_placement_descriptor = legacy_uniform_autoep_placement_descriptor(
            self.num_experts, self.num_local_experts, expert_parallel
        )
        self._mark_parameters()

    def _mark_parameters(self) -> None:
        local_experts = list(autoep_experts_for_rank(self.expert_placement_descriptor, self.ep_rank))
        for parameter in self.experts.parameters():
            shape = [self.num_experts, *parameter.shape[1:]]
            affine_map = autoep_placement_to_affine_map(self.expert_placement_descriptor, shape)
            marks = {
                "allreduce": False,
                "group_name": self.ep_group_name,
                "ds_zero_placement_family": "autoep_expert",
                "ds_zero_partition_group_name": self.ep_group_name,
                DS_AUTOEP_UC_META: {
                    AUTOEP_EXPERT_PLACEMENT: self.expert_placement_descriptor,
                    AFFINE_MAP: affine_map.to_dict(),
                    AUTOEP_PARAM_LOGICAL_SHAPE: shape,
                    AUTOEP_PARAM_EP_RANK: self.ep_rank,
                    AUTOEP_PARAM_LOCAL_EXPERTS: local_experts,
                },
            }
            for name, value in marks.items():
                setattr(parameter, name, value)

    def set_deepspeed_parallelism(self, *arguments, **options) -> None:
        """Called by the engine: make the expert groups, then exchange frames over this process's one."""
        AutoEPMoELayer.set_deepspeed_parallelism(self, *arguments, **options)
        assert self.ep_group is not None
        self.exchange = AllToAllDispatcher(self.ep_group, self.num_local_experts)

    def forward(self, x_ND, routing):  # pyright: ignore[reportIncompatibleMethodOverride]
        return MixtureOfExperts.forward(self, x_ND, routing)


def _local_stack(whole: ExpertStack, ep_rank: int, num_local: int) -> ExpertStack:
    local = ExpertStack(num_local, whole.w1.shape[2], whole.hidden)
    start = ep_rank * num_local
    with torch.no_grad():
        for mine, all_experts in zip(local.parameters(), whole.parameters(), strict=True):
            mine.copy_(all_experts[start : start + num_local])
    return local


def spread_experts(recognizer: Model, expert_parallel: int, rank: int) -> None:
    """Leave this process its share of every block's experts. Every process must start from the same weights.

    A dense layer beside the experts stays whole, like all else.
    """
    if expert_parallel == 1:
        return
    for parent in list(recognizer.encoder.blocks.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MixtureOfExperts):
                setattr(parent, name, ExpertParallelMixture(child, expert_parallel, rank))
