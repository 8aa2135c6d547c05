"""The only place that spreads a model over processes. In this order:

1. `start_processes` joins the process group (gloo on CPUs, NCCL on GPUs) without any compiler at run time.
2. `spread_experts` leaves each process its share of every block's experts and puts in the exchange that moves frames.
3. `build_engine` hands the model to DeepSpeed, whose ZeRO stage shards what the configuration says; `update` is its
   step.
4. `fragments` and `replicas` say which interval of which parameter this process owns and copies; checkpoints are made
   of those and never touch DeepSpeed.

`ExpertParallelMixture` stands on DeepSpeed 0.19's AutoEP layer: the engine recognises experts, their process groups
and their gradient averaging by that class and by the attributes set in `_mark_parameters`. DeepSpeed's automatic AutoEP
mode stays off: it silently gives each layer a private copy of shared experts.
"""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import deepspeed
import deepspeed.ops
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
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from torch import Tensor, nn

from launcher.planning.memory import is_matrix
from launcher.recipe import OptimizerConfig
from model.experts import ExpertStack, LocalExchange, MixtureOfExperts
from model.masked_prediction import Model
from model.rows import pick, place

MOMENTS = ("exp_avg", "exp_avg_sq")
# A DeepSpeedEngine; its own annotations allow for every optimizer it has, and for none.
Engine: TypeAlias = Any


def start_processes(timeout_s: float) -> torch.device:
    """Join the process group described by the environment and return this process's device."""
    # The shared-memory op only serves inference, and building it costs every first start half a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.init_distributed(timeout=timedelta(seconds=timeout_s), verbose=False)
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


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


class ExpertParallelExchange:
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
        return pick(arrived, self.order), received_PL.sum(0).tolist()

    def combine(self, y_MD: Tensor) -> Tensor:
        by_sender = place(y_MD, self.order, len(y_MD))
        return _AllToAll.apply(by_sender, self.group, self.received, self.sent)


class ExpertParallelMixture(MixtureOfExperts, AutoEPMoELayer):
    """A block's mixture of which this process holds `num_local_experts` experts; the mathematics is the model's own."""

    def __init__(self, whole: MixtureOfExperts, expert_parallel: int, rank: int):
        nn.Module.__init__(self)
        self.num_experts = whole.num_experts
        self.num_local_experts = whole.num_experts // expert_parallel
        self.ep_size, self.ep_rank = expert_parallel, rank % expert_parallel
        self.experts = _local_stack(whole.experts, self.ep_rank, self.num_local_experts)
        self.exchange = LocalExchange()  # until the engine has made the process groups
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
        self.exchange = ExpertParallelExchange(self.ep_group, self.num_local_experts)

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


def build_engine(
    recognizer: Model,
    optimizer: OptimizerConfig,
    deepspeed_file: Path,
    accumulation: int,
    precision: str,
) -> Engine:
    """The DeepSpeed engine of a model whose experts are spread. `accumulation` micro-batches make one step.

    The optimizer is torch's AdamW: DeepSpeed's own would be compiled at the first start.
    """
    configuration = json.loads(deepspeed_file.read_text(encoding="utf-8"))
    configuration |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optimizer.clip_norm,
        "steps_per_print": 2**62,
        # No module is "safe" for DeepSpeed: those would have their gradients added up and reduced in bf16 under ZeRO,
        # by errors of up to 2 % that depend on its stage.
        "torch_autocast": {"enabled": precision == "bf16", "dtype": "bfloat16", "lower_precision_safe_modules": []},
    }
    adamw = torch.optim.AdamW(
        _parameter_groups(recognizer, optimizer.weight_decay),
        lr=optimizer.peak_learning_rate,
        betas=optimizer.betas,
    )
    engine, *_ = deepspeed.initialize(model=recognizer, optimizer=adamw, config=configuration)
    return engine


def _parameter_groups(recognizer: Model, weight_decay: float) -> list[dict]:
    matrices = [p for p in recognizer.parameters() if is_matrix(p)]
    known = {id(p) for p in matrices}
    vectors = [p for p in recognizer.parameters() if id(p) not in known]
    groups = [
        {"name": "matrices", "params": matrices, "weight_decay": weight_decay},
        {"name": "vectors", "params": vectors, "weight_decay": 0.0},
    ]
    return split_params_into_different_moe_groups_for_optimizer(groups)


def update(engine: Engine) -> bool:
    """Apply the step's gradients, and return True.

    When their norm is not finite nothing is applied, neither to weights nor to moments, and False is returned, on
    every process alike.
    """
    if engine.zero_optimization_stage() > 0:
        engine.step()  # looks at the norm over all processes before it applies anything
        return engine.was_step_applied()
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    if nn.utils.get_total_norm(gradients).isfinite():
        engine.step()
        return True
    engine.module.zero_grad()
    engine.micro_steps += 1  # the engine counts to the end of an accumulation
    return False


def set_learning_rate(engine: Engine, value: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def gradient_norm(engine: Engine) -> float:
    """Global norm of the last step's gradient before clipping; nan where the engine does not tell (ZeRO stage 0)."""
    norm = engine.get_global_grad_norm()
    return float("nan") if norm is None else float(norm)


@dataclass
class Fragment:
    """An interval of one parameter, flattened over all experts: [start, start + len(values)) of `name`.

    `values` is a flat view that may be written to. `state` is the optimizer's state that belongs to it, as flat views,
    empty for a copy that is only computed with. `writes` is False where another process holds the same interval.
    """

    name: str
    start: int
    values: Tensor
    state: dict[str, Tensor]
    writes: bool = True


def shapes(recognizer: Model) -> dict[str, list[int]]:
    """The shape of every parameter over all experts, by its name in an unspread model."""
    experts = _expert_parameters(recognizer)
    return {
        name: [experts[name].num_experts, *_shape(parameter)[1:]] if name in experts else list(_shape(parameter))
        for name, parameter in recognizer.named_parameters()
    }


def offsets(recognizer: Model) -> dict[str, int]:
    """Where the part of each parameter that this process computes with starts in the whole, flattened over experts."""
    experts = _expert_parameters(recognizer)
    return {
        name: experts[name].ep_rank * _shape(parameter).numel() if name in experts else 0
        for name, parameter in recognizer.named_parameters()
    }


def replicas(engine: Engine) -> Iterator[Fragment]:
    """The weights that this process keeps to compute with: all, of experts its own; under ZeRO 3 its shards."""
    starts = offsets(engine.module)
    for name, parameter in engine.module.named_parameters():
        if engine.zero_optimization_stage() == 3:
            if shard := _shard(engine.optimizer, parameter):
                yield Fragment(name, starts[name] + shard.start, parameter.ds_tensor.data[: len(shard)], {})
        else:
            yield Fragment(name, starts[name], parameter.data.view(-1), {})


def fragments(engine: Engine) -> Iterator[Fragment]:
    """The fp32 weights and the moments that this process owns, under any ZeRO stage.

    Moments that the optimizer has not made yet (before the first step) are made, as zeros.
    """
    owned = {0: _whole_fragments, 1: _flat_fragments, 2: _flat_fragments, 3: _sharded_fragments}
    return owned[engine.zero_optimization_stage()](engine)


def _whole_fragments(engine: Engine) -> Iterator[Fragment]:
    """Without ZeRO the optimizer keeps its state beside each parameter, on every process that holds it."""
    starts, experts = offsets(engine.module), _expert_parameters(engine.module)
    for name, parameter in engine.module.named_parameters():
        state = _moments(engine.optimizer.state[parameter], parameter.data)
        views = {key: value.view(-1) for key, value in state.items()}
        yield Fragment(name, starts[name], parameter.data.view(-1), views, _first_replica(experts.get(name)))


def _flat_fragments(engine: Engine) -> Iterator[Fragment]:
    """ZeRO 1 and 2 flatten a group's parameters one behind the other and cut that into a partition per process."""
    starts, zero = offsets(engine.module), engine.optimizer
    states = [_moments(zero.optimizer.state[flat], flat) for flat in zero.single_partition_of_fp32_groups]
    for name, parameter in engine.module.named_parameters():
        mapping = parameter._hp_mapping  # none where this process owns nothing of the parameter
        if mapping is None:
            continue
        inside, address = mapping.lp_fragment_address, mapping.get_hp_fragment_address()
        views = {
            key: value.narrow(0, address.start, address.numel)
            for key, value in states[mapping.param_group_index].items()
        }
        yield Fragment(name, starts[name] + inside.start, mapping.get_hp_fragment(), views)


def _sharded_fragments(engine: Engine) -> Iterator[Fragment]:
    """ZeRO 3 cuts every parameter into a shard per process and flattens the shards of a sub-group."""
    starts, zero = offsets(engine.module), engine.optimizer
    flats = zero.fp32_partitioned_groups_flat
    states = [_moments(zero.optimizer.state[flat], flat) for flat in flats]
    for name, parameter in engine.module.named_parameters():
        shard = _shard(zero, parameter)
        if not shard:
            continue
        group, position, _ = zero.grad_position[zero.get_param_id(parameter)]
        views = {key: value.narrow(0, position, len(shard)) for key, value in states[group].items()}
        values = flats[group].data.narrow(0, position, len(shard))
        yield Fragment(name, starts[name] + shard.start, values, views)


def _shard(zero: Any, parameter: nn.Parameter) -> range:
    """The interval of a flattened parameter in this process's shard under ZeRO 3, without padding; it may be empty.

    Experts are cut over the processes that hold the same ones.
    """
    size, numel = parameter.partition_numel(), _shape(parameter).numel()  # pyright: ignore[reportAttributeAccessIssue]
    start = min(zero._get_param_partition_rank(parameter) * size, numel)
    return range(start, min(start + size, numel))


def set_optimizer_step(engine: Engine, step: int) -> None:
    """Tell AdamW (its bias correction) and the engine how many updates were made, after fragments were filled."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in optimizer.state.values():
        state["step"].fill_(step)
    engine.global_steps = step
    if hasattr(engine.optimizer, "_hp_optimizer_states_linked"):
        engine.optimizer._hp_optimizer_states_linked = False  # the moments' tensors may be new
    persistent = getattr(engine.optimizer, "persistent_parameters", [])
    if persistent:
        # ZeRO 3 keeps small parameters gathered between steps: what it gathered before the shards were filled is stale.
        persistent[0].partition(persistent)
        engine.optimizer.checkpoint_event_epilogue()


def _moments(state: dict, parameter: Tensor) -> dict[str, Tensor]:
    if not state:
        state["step"] = torch.zeros(())
        for key in MOMENTS:
            state[key] = torch.zeros_like(parameter)
    return {key: state[key] for key in MOMENTS}


def _expert_parameters(recognizer: nn.Module) -> dict[str, ExpertParallelMixture]:
    """The mixture that each spread parameter belongs to, by the parameter's name."""
    return {
        f"{prefix}.experts.{name}": mixture
        for prefix, mixture in recognizer.named_modules()
        if isinstance(mixture, ExpertParallelMixture)
        for name, _ in mixture.experts.named_parameters()
    }


def _shape(parameter: Tensor) -> torch.Size:
    """A parameter's shape, which ZeRO 3 keeps elsewhere while the parameter itself is sharded and empty."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _first_replica(mixture: ExpertParallelMixture | None) -> bool:
    rank = dist.get_rank()
    return rank == 0 if mixture is None else rank < mixture.ep_size
