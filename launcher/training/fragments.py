"""Which intervals of which parameters this process owns, under any ZeRO stage; checkpoints are made of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launcher.training.expert_parallel import ExpertParallelMixture
from launcher.training.parallel import Engine
from model.masked_prediction import Model

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


def full_shapes(recognizer: Model) -> dict[str, list[int]]:
    """The shape of every parameter over all experts, by its name in an unspread model."""
    experts = _expert_parameters(recognizer)
    return {
        name: [experts[name].num_experts, *_shape(parameter)[1:]] if name in experts else list(_shape(parameter))
        for name, parameter in recognizer.named_parameters()
    }


def local_offsets(recognizer: Model) -> dict[str, int]:
    """Where the part of each parameter that this process computes with starts in the whole, flattened over experts."""
    experts = _expert_parameters(recognizer)
    return {
        name: experts[name].ep_rank * _shape(parameter).numel() if name in experts else 0
        for name, parameter in recognizer.named_parameters()
    }


def replica_fragments(engine: Engine) -> Iterator[Fragment]:
    """The weights that this process keeps to compute with: all, of experts its own; under ZeRO 3 its shards."""
    starts = local_offsets(engine.module)
    for name, parameter in engine.module.named_parameters():
        if engine.zero_optimization_stage() == 3:
            if shard := _shard(engine.optimizer, parameter):
                yield Fragment(name, starts[name] + shard.start, parameter.ds_tensor.data[: len(shard)], {})
        else:
            yield Fragment(name, starts[name], parameter.data.view(-1), {})


def owned_fragments(engine: Engine) -> Iterator[Fragment]:
    """The fp32 weights and the moments that this process owns, under any ZeRO stage.

    Moments that the optimizer has not made yet (before the first step) are made, as zeros.
    """
    owned = {0: _whole_fragments, 1: _flat_fragments, 2: _flat_fragments, 3: _sharded_fragments}
    return owned[engine.zero_optimization_stage()](engine)


def _whole_fragments(engine: Engine) -> Iterator[Fragment]:
    """Without ZeRO the optimizer keeps its state beside each parameter, on every process that holds it."""
    starts, experts = local_offsets(engine.module), _expert_parameters(engine.module)
    for name, parameter in engine.module.named_parameters():
        state = _moments(engine.optimizer.state[parameter], parameter.data)
        views = {key: value.view(-1) for key, value in state.items()}
        yield Fragment(name, starts[name], parameter.data.view(-1), views, _first_replica(experts.get(name)))


def _flat_fragments(engine: Engine) -> Iterator[Fragment]:
    """ZeRO 1 and 2 flatten a group's parameters one behind the other and cut that into a partition per process."""
    starts, zero = local_offsets(engine.module), engine.optimizer
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
    starts, zero = local_offsets(engine.module), engine.optimizer
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
