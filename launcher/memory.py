"""The memory of one process, from shapes alone: what the engine keeps under a ZeRO stage, with experts spread or not.

weights: what a process computes with. gradients: what it keeps of them until the update. master: a second copy of the
weights that it updates. moments: AdamW's two. communication: buffers that gradients are reduced in. All are fp32
whatever the precision of the products is. Activations, which depend on the batch, are in `model/activations.py`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from model.experts import MixtureOfExperts
from model.recognizer import Recognizer

BYTES_FP32 = 4
MOMENTS = 2
# DeepSpeed pads each flattened group to a multiple of so many elements per process (nccl_start_alignment_factor).
ALIGNMENT = 2
# DeepSpeed's defaults, in elements.
REDUCE_BUCKET, PERSISTENCE_THRESHOLD = 500_000_000, 100_000


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter has weight decay; the optimizer's groups, which ZeRO flattens one by one, go by it."""
    return parameter.ndim > 1 and parameter.shape[-2] > 1


@dataclass(frozen=True)
class ParameterSize:
    """One parameter: its elements (of a stack of experts those of all of them), and which group it falls into."""

    numel: int
    expert: bool
    matrix: bool


def parameter_sizes(recognizer: Recognizer) -> list[ParameterSize]:
    """The parameters of a model that is not spread, which may live on the meta device."""
    experts = {
        id(parameter)
        for module in recognizer.modules()
        if isinstance(module, MixtureOfExperts)
        for parameter in module.experts.parameters()
    }
    return [
        ParameterSize(parameter.numel(), id(parameter) in experts, is_matrix(parameter))
        for parameter in recognizer.parameters()
    ]


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest process."""

    weights: int
    gradients: int
    master: int
    moments: int
    communication: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def memory_per_process(
    parameters: Sequence[ParameterSize], processes: int, expert_parallel: int, zero: dict[str, Any]
) -> Memory:
    """What a process keeps from step to step, and the buffers of its backward pass.

    Every parameter is cut over the processes that hold the same values: all of them, or, of spread experts,
    processes / expert_parallel. `zero` is the `zero_optimization` of a DeepSpeed configuration. What ZeRO 3 gathers to
    compute with beyond the parameters that it never lets go is left out: up to stage3_max_live_parameters.
    """
    spread = expert_parallel > 1
    local = [
        (size.numel // expert_parallel, processes // expert_parallel, size)
        if size.expert and spread
        else (size.numel, processes, size)
        for size in parameters
    ]
    whole = sum(numel for numel, _, _ in local)
    level = zero.get("stage", 0)
    if level == 0:
        # Gradients are averaged in buckets that they are copied to.
        elements = (whole, whole, 0, MOMENTS * whole, min(whole, REDUCE_BUCKET) if processes > 1 else 0)
    elif level == 3:
        shards = sum(-(-numel // holders) for numel, holders, _ in local)
        threshold = zero.get("stage3_param_persistence_threshold", PERSISTENCE_THRESHOLD)
        # Small parameters stay gathered, in copies as long as all their shards; a single holder's shard is the whole.
        persistent = sum(
            -(-numel // holders) * holders for numel, holders, _ in local if numel <= threshold and holders > 1
        )
        elements = (shards + persistent, shards, 0, MOMENTS * shards, _buckets(zero))
    else:
        flat = [_padded(numel, holders) for numel, holders in _groups(local)]
        weights, owned = sum(numel for numel, _ in flat), sum(numel // holders for numel, holders in flat)
        elements = (weights, owned if level == 2 else whole, owned, MOMENTS * owned, _buckets(zero))
    return Memory(*(BYTES_FP32 * number for number in elements))


def _groups(local: Iterable[tuple[int, int, ParameterSize]]) -> list[tuple[int, int]]:
    """Elements of each of the optimizer's groups, and the processes that share them: spread experts are apart."""
    groups: Counter[tuple[bool, int]] = Counter()
    for numel, holders, size in local:
        groups[size.matrix, holders] += numel
    return [(numel, holders) for (_, holders), numel in groups.items()]


def _padded(numel: int, holders: int) -> tuple[int, int]:
    multiple = ALIGNMENT * holders
    return -(-numel // multiple) * multiple, holders


def _buckets(zero: dict[str, Any]) -> int:
    """Elements of the buffers that ZeRO copies gradients to; it makes them in full, however small the model is."""
    if not zero.get("contiguous_gradients", True):
        return 0
    return int(zero.get("reduce_bucket_size", REDUCE_BUCKET)) * (
        2 if zero.get("overlap_comm") and zero["stage"] < 3 else 1
    )
