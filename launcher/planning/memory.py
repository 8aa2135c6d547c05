"""The memory of one process, from shapes alone: what the engine keeps under a ZeRO stage, with experts spread or not.

Between steps: weights, what a process computes with; master, a second copy of them that the update is made in; moments,
AdamW's two. In the backward pass beside the activations (`model/costs/activation_memory.py`):
gradients at their most; communication, buffers that gradients are reduced in; gathered, what ZeRO 3 puts together to
compute with. In the update: the gradients, their copies, and what AdamW computes with. All are fp32 whatever the
precision of the products is. tests/benchmarks/memory.py compares the sums with real trainings.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from model.masked_prediction import Model
from model.moe.experts import MixtureOfExperts

BYTES_FP32 = 4
MOMENTS = 2
# Of a group's partition, while AdamW updates it: the root of its second moment and what it divides by. On GPUs torch
# makes one of the two in place.
UPDATE_COPIES = 2
# DeepSpeed pads each flattened group to a multiple of so many elements per process (nccl_start_alignment_factor).
ALIGNMENT = 2
# DeepSpeed's defaults, in elements.
REDUCE_BUCKET, PERSISTENCE_THRESHOLD = 500_000_000, 100_000
MAX_LIVE_PARAMETERS, PREFETCH_BUCKET = 1_000_000_000, 50_000_000


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter has weight decay; the optimizer's groups, which ZeRO flattens one by one, go by it."""
    return parameter.ndim > 1 and parameter.shape[-2] > 1


@dataclass(frozen=True)
class ParameterSize:
    """One parameter: its elements (of a stack of experts those of all of them), and which group it falls into."""

    numel: int
    expert: bool
    matrix: bool


def parameter_sizes(recognizer: Model) -> list[ParameterSize]:
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
    """Bytes on the fullest process.

    `incoming` are gradients of experts before they are added to those of earlier micro-batches. `message` is what is on
    its way: gradients at their first reduction, when `reduced` of them (a share) are there, or the weights that ZeRO 3
    fetches at a time. `update` is all that the update holds beside weights, master and moments.
    """

    weights: int
    gradients: int
    master: int
    moments: int
    communication: int
    gathered: int
    incoming: int
    message: int
    reduced: float
    update: int

    def peak(self, activations: int) -> int:
        """The most at once: when the backward pass begins, at its first message, or in the update.

        Activations are taken to go as gradients come.
        """
        backward = self.gradients + self.communication + self.gathered
        sending = backward + self.message + round(activations * (1 - self.reduced))
        beginning = backward + self.incoming + activations
        return self.weights + self.master + self.moments + max(beginning, sending, self.update)


@dataclass(frozen=True)
class _Part:
    """A parameter as one process holds it: its elements here, and how many processes hold the same ones."""

    numel: int
    holders: int
    size: ParameterSize

    @property
    def shard(self) -> int:
        return -(-self.numel // self.holders)


def memory_per_process(
    parameters: Sequence[ParameterSize],
    processes: int,
    expert_parallel: int,
    zero: dict[str, Any],
    accumulation: int = 1,
) -> Memory:
    """What a process keeps from step to step, and holds on the way through one of `accumulation` micro-batches.

    Every parameter is cut over the processes that hold the same values: all of them, or, of spread experts,
    processes / expert_parallel. `zero` is the `zero_optimization` of a DeepSpeed configuration.
    """
    spread = expert_parallel > 1
    parts = [
        _Part(size.numel // expert_parallel, processes // expert_parallel, size)
        if size.expert and spread
        else _Part(size.numel, processes, size)
        for size in parameters
    ]
    memory_of_stage = {0: _replicated, 1: _partitioned, 2: _partitioned, 3: _sharded}[zero.get("stage", 0)]
    elements = memory_of_stage(parts, zero, accumulation)
    reduced = elements.pop("reduced", 0.0)
    return Memory(reduced=reduced, **{kind: BYTES_FP32 * int(number) for kind, number in elements.items()})


def _replicated(parts: list[_Part], zero: dict[str, Any], accumulation: int) -> dict[str, float]:
    """ZeRO 0: gradients are averaged after the backward pass in a copy, then AdamW takes one parameter at a time."""
    whole, several = sum(part.numel for part in parts), parts[0].holders > 1
    copies = max(min(whole, REDUCE_BUCKET) if several else 0, UPDATE_COPIES * max(part.numel for part in parts))
    return {
        "weights": whole,
        "gradients": whole,
        "master": 0,
        "moments": MOMENTS * whole,
        "communication": 0,
        "gathered": 0,
        "incoming": _incoming(parts, accumulation),
        "message": 0,
        "update": whole + copies,
    }


def _partitioned(parts: list[_Part], zero: dict[str, Any], accumulation: int) -> dict[str, float]:
    """ZeRO 1 and 2: gradients pass through a bucket into a partition, which the update copies group by group."""
    flat = [_padded(numel, holders) for numel, holders in _groups(parts)]
    weights, owned = sum(numel for numel, _ in flat), sum(numel // holders for numel, holders in flat)
    bucket = _buckets(zero)
    filled = min(bucket, weights)
    gradients, message = 0, owned + filled  # the partition, and the copy that is sent
    if accumulation > 1 and zero["stage"] == 1:  # reduces after the last micro-batch: whole gradients until then
        gradients, message = weights, owned
    elif accumulation > 1:  # reduces every micro-batch's, and adds them to the partition of those before
        gradients = owned
    return {
        "weights": weights,
        "gradients": gradients,
        "master": owned,
        "moments": MOMENTS * owned,
        "communication": bucket,
        "gathered": 0,
        "incoming": _incoming(parts, accumulation),
        "message": message,
        "reduced": filled / weights,
        "update": owned + (1 + UPDATE_COPIES) * max(numel // holders for numel, holders in flat),
    }


def _sharded(parts: list[_Part], zero: dict[str, Any], accumulation: int) -> dict[str, float]:
    """ZeRO 3: the buffer of the shards' gradients and the bucket stay from step to step."""
    threshold = zero.get("stage3_param_persistence_threshold", PERSISTENCE_THRESHOLD)
    shards, bucket = sum(part.shard for part in parts), _buckets(zero)
    cut = [part for part in parts if part.holders > 1]  # a single holder's shard is the whole
    # Small parameters stay gathered, in copies as long as all their shards.
    persistent = sum(part.shard * part.holders for part in cut if part.numel <= threshold)
    others = sum(part.numel for part in cut if part.numel > threshold)
    live = int(zero.get("stage3_max_live_parameters", MAX_LIVE_PARAMETERS))
    fetched = int(zero.get("stage3_prefetch_bucket_size", PREFETCH_BUCKET))
    groups: Counter[bool] = Counter()
    for part in parts:
        groups[part.size.matrix] += part.shard
    return {
        "weights": shards + persistent,
        "gradients": shards,
        "master": shards,
        "moments": MOMENTS * shards,
        "communication": bucket,
        "gathered": min(others, live),
        "incoming": _incoming(parts, accumulation),
        "message": min(others, fetched),
        "update": shards + bucket + (1 + UPDATE_COPIES) * max(groups.values()),
    }


def _incoming(parts: Iterable[_Part], accumulation: int) -> int:
    """Elements of the gradients of one block's experts: a layer's as they come and the sum of those of layers above,
    beside those of earlier micro-batches; in the first one they come before the others."""
    matrices = [part.numel for part in parts if part.size.expert and part.size.matrix]
    return 2 * 2 * max(matrices, default=0) if accumulation > 1 else 0


def _groups(parts: Iterable[_Part]) -> list[tuple[int, int]]:
    """Elements of each of the optimizer's groups, and the processes that share them: spread experts are apart."""
    groups: Counter[tuple[bool, int]] = Counter()
    for part in parts:
        groups[part.size.matrix, part.holders] += part.numel
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
