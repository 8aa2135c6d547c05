"""Which intervals of which parameters this process owns, under any ZeRO stage; checkpoints are made of them.

A fragment is an interval of one parameter, flattened over all experts as in an unspread model. It knows no topology,
so whoever holds an interval later finds it, whatever process wrote it.

Everything here stands on private parts of DeepSpeed 0.19: where ZeRO keeps fp32 weights and how it cuts them.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launcher.training.expert_parallel import ExpertParallelMixture
from launcher.training.parallel import Engine
from model.masked_prediction import Model

# AdamW's names of its moments in torch; also the kinds under which checkpoints store them.
MOMENTS = ("exp_avg", "exp_avg_sq")


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


def full_shapes(model: Model) -> dict[str, list[int]]:
    """The shape of every parameter over all experts, by its name in an unspread model."""
    mixtures = _mixture_of_parameter(model)
    shapes = {}
    for name, parameter in model.named_parameters():
        shape = list(_shape(parameter))
        if name in mixtures:
            shape[0] = mixtures[name].num_experts
        shapes[name] = shape
    return shapes


def local_offsets(model: Model) -> dict[str, int]:
    """Where the part of each parameter that this process computes with starts in the whole, flattened over experts."""
    mixtures = _mixture_of_parameter(model)
    starts = {}
    for name, parameter in model.named_parameters():
        if name in mixtures:
            starts[name] = mixtures[name].ep_rank * _shape(parameter).numel()
        else:
            starts[name] = 0
    return starts


def replica_fragments(engine: Engine) -> Iterator[Fragment]:
    """The weights that this process keeps to compute with: all of the shared ones, of experts its own; under ZeRO 3
    its shards."""
    starts = local_offsets(engine.module)
    for name, parameter in engine.module.named_parameters():
        if engine.zero_optimization_stage() < 3:
            yield Fragment(name, starts[name], parameter.data.view(-1), {})
            continue
        shard = _zero3_shard(engine.optimizer, parameter)
        if shard:
            # The local tensor is padded so that all processes have as much; the padding belongs to no parameter.
            values = parameter.ds_tensor.data[: len(shard)]
            yield Fragment(name, starts[name] + shard.start, values, {})


def owned_fragments(engine: Engine) -> Iterator[Fragment]:
    """The fp32 weights and the moments that this process owns, under any ZeRO stage; of frozen parameters the weights.

    Moments that the optimizer has not made yet (before the first step) are made, as zeros.
    """
    match engine.zero_optimization_stage():
        case 0:
            trained = _unsharded_fragments(engine)
        case 1 | 2:
            trained = _partition_fragments(engine)
        case stage:
            assert stage == 3
            trained = _zero3_fragments(engine)
    return itertools.chain(trained, _frozen_fragments(engine))


def _trained_parameters(engine: Engine) -> Iterator[tuple[str, Any]]:
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def _frozen_fragments(engine: Engine) -> Iterator[Fragment]:
    """The optimizer knows nothing of them: they are what the process computes with."""
    mixtures = _mixture_of_parameter(engine.module)
    is_frozen = {}
    for name, parameter in engine.module.named_parameters():
        is_frozen[name] = not parameter.requires_grad
    for fragment in replica_fragments(engine):
        if not is_frozen[fragment.name]:
            continue
        # Under ZeRO 3 every process has a shard of its own.
        if engine.zero_optimization_stage() < 3:
            fragment.writes = _writes(fragment.name, mixtures)
        yield fragment


def _writes(name: str, mixtures: dict[str, ExpertParallelMixture]) -> bool:
    """Whether this process writes what several hold whole: rank 0, or of experts the first group's."""
    num_writers = 1
    if name in mixtures:
        num_writers = mixtures[name].ep_size
    return dist.get_rank() < num_writers


def _unsharded_fragments(engine: Engine) -> Iterator[Fragment]:
    """Without ZeRO the optimizer keeps its state beside each parameter, on every process that holds it."""
    starts = local_offsets(engine.module)
    mixtures = _mixture_of_parameter(engine.module)
    for name, parameter in _trained_parameters(engine):
        moments = _moments(engine.optimizer.state[parameter], parameter.data)
        views = {}
        for key, value in moments.items():
            views[key] = value.view(-1)
        yield Fragment(name, starts[name], parameter.data.view(-1), views, writes=_writes(name, mixtures))


def _partition_fragments(engine: Engine) -> Iterator[Fragment]:
    """ZeRO 1 and 2 flatten a group's parameters one behind the other and cut that into a partition per process."""
    starts = local_offsets(engine.module)
    zero = engine.optimizer
    moments_of_group = []
    for flat in zero.single_partition_of_fp32_groups:
        moments_of_group.append(_moments(zero.optimizer.state[flat], flat))
    for name, parameter in _trained_parameters(engine):
        mapping = parameter._hp_mapping
        # Nothing of this parameter is in this process's partition.
        if mapping is None:
            continue
        # lp and hp are DeepSpeed's words for the weights that are computed with and for their fp32 originals.
        in_parameter = mapping.lp_fragment_address
        in_partition = mapping.get_hp_fragment_address()
        views = {}
        for key, value in moments_of_group[mapping.param_group_index].items():
            views[key] = value.narrow(0, in_partition.start, in_partition.numel)
        start = starts[name] + in_parameter.start
        yield Fragment(name, start, mapping.get_hp_fragment(), views)


def _zero3_fragments(engine: Engine) -> Iterator[Fragment]:
    """ZeRO 3 cuts every parameter into a shard per process and flattens the shards of a sub-group."""
    starts = local_offsets(engine.module)
    zero = engine.optimizer
    flats = zero.fp32_partitioned_groups_flat
    moments_of_group = []
    for flat in flats:
        moments_of_group.append(_moments(zero.optimizer.state[flat], flat))
    for name, parameter in _trained_parameters(engine):
        shard = _zero3_shard(zero, parameter)
        if not shard:
            continue
        group, position, _ = zero.grad_position[zero.get_param_id(parameter)]
        views = {}
        for key, value in moments_of_group[group].items():
            views[key] = value.narrow(0, position, len(shard))
        values = flats[group].data.narrow(0, position, len(shard))
        yield Fragment(name, starts[name] + shard.start, values, views)


def _zero3_shard(zero: Any, parameter: nn.Parameter) -> range:
    """The interval of a flattened parameter in this process's shard under ZeRO 3, without padding; it may be empty.

    Experts are cut over the processes that hold the same ones.
    """
    size = parameter.partition_numel()  # pyright: ignore[reportAttributeAccessIssue]
    numel = _shape(parameter).numel()
    # The last shards reach beyond the parameter, or begin there: they are padding.
    start = min(zero._get_param_partition_rank(parameter) * size, numel)
    stop = min(start + size, numel)
    return range(start, stop)


def set_optimizer_step(engine: Engine, step: int) -> None:
    """Tell AdamW (its bias correction) and the engine how many updates were made, after fragments were filled."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in optimizer.state.values():
        state["step"].fill_(step)
    engine.global_steps = step

    if hasattr(engine.optimizer, "_hp_optimizer_states_linked"):
        # The moments' tensors may be new: DeepSpeed is to look for them again.
        engine.optimizer._hp_optimizer_states_linked = False
    persistent = getattr(engine.optimizer, "persistent_parameters", [])
    if persistent:
        # ZeRO 3 keeps small parameters gathered between steps: what it gathered before the shards were filled is stale.
        persistent[0].partition(persistent)
        engine.optimizer.checkpoint_event_epilogue()


def _moments(state: dict, parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's moments of a parameter, made as it makes them itself where there was no step yet."""
    if not state:
        state["step"] = torch.zeros(())
        for key in MOMENTS:
            state[key] = torch.zeros_like(parameter)
    return {key: state[key] for key in MOMENTS}


def _mixture_of_parameter(model: nn.Module) -> dict[str, ExpertParallelMixture]:
    """The mixture that each spread parameter belongs to, by the parameter's name."""
    mixtures = {}
    for prefix, module in model.named_modules():
        if isinstance(module, ExpertParallelMixture):
            for name, _ in module.experts.named_parameters():
                mixtures[f"{prefix}.experts.{name}"] = module
    return mixtures


def _shape(parameter: Tensor) -> torch.Size:
    """A parameter's shape, which ZeRO 3 keeps elsewhere while the parameter itself is sharded and empty."""
    return getattr(parameter, "ds_shape", parameter.shape)
