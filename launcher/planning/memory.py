"""The memory of one process, from shapes alone: what the engine keeps under a ZeRO stage, with experts spread or not.

Between steps it keeps the weights that it computes with, a second copy of them that the update is made in (master), and
AdamW's two moments. The backward pass adds gradients, the buffers that they are reduced in, and the weights that ZeRO 3
gathers, beside the activations (`model/costs/activation_memory.py`). The update adds copies of the gradients and what
AdamW computes with. All are fp32 whatever the precision of the products is. tests/benchmarks/memory.py compares the
sums with real trainings.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from model.masked_prediction import Model
from model.moe.experts import MixtureOfExperts

BYTES_FP32 = 4
# AdamW's first and second.
MOMENTS = 2
# Of a group's partition, while AdamW updates it: the root of its second moment and what it divides by. On GPUs torch
# makes one of the two in place.
UPDATE_COPIES = 2
# Gradients of a stack of experts: one layer's and the sum of those of the layers above, each of two matrices.
EXPERT_GRADIENT_COPIES = 2 * 2
# DeepSpeed pads each flattened group to a multiple of so many elements per process (nccl_start_alignment_factor).
ALIGNMENT = 2
# DeepSpeed's defaults, in elements.
REDUCE_BUCKET = 500_000_000
PERSISTENCE_THRESHOLD = 100_000
MAX_LIVE_PARAMETERS = 1_000_000_000
PREFETCH_BUCKET = 50_000_000


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter has weight decay; the optimizer's groups, which ZeRO flattens one by one, go by it."""
    return parameter.ndim > 1 and parameter.shape[-2] > 1


@dataclass(frozen=True)
class ParameterSize:
    """One parameter: its elements (of a stack of experts those of all of them), which group it falls into, and whether
    it is frozen."""

    numel: int
    expert: bool
    matrix: bool
    frozen: bool = False


def parameter_sizes(recognizer: Model) -> list[ParameterSize]:
    """The parameters of a model that is not spread, which may live on the meta device."""
    expert_ids: set[int] = set()
    for module in recognizer.modules():
        if isinstance(module, MixtureOfExperts):
            expert_ids.update(id(parameter) for parameter in module.experts.parameters())

    sizes = []
    for parameter in recognizer.parameters():
        is_expert = id(parameter) in expert_ids
        is_frozen = not parameter.requires_grad
        sizes.append(ParameterSize(parameter.numel(), is_expert, is_matrix(parameter), is_frozen))
    return sizes


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest process.

    - `weights`, `master`, `moments`: held all the time.
    - `gradients`, `communication`, `gathered`: held in the backward pass; gradients, the buffers that they are reduced
      in, and the weights that ZeRO 3 puts together.
    - `incoming`: gradients of experts before they are added to those of earlier micro-batches.
    - `message`: what is on its way: gradients at their first reduction, or the weights that ZeRO 3 fetches at a time.
    - `reduced`: the share of the gradients that are there at their first reduction.
    - `update`: all that the update holds beside weights, master and moments.
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
        """The most at once: when the backward pass begins, at its first message, or in the update."""
        backward = self.gradients + self.communication + self.gathered
        beginning = backward + self.incoming + activations
        # Activations are taken to go as gradients come.
        sending = backward + self.message + round(activations * (1 - self.reduced))
        return self.weights + self.master + self.moments + max(beginning, sending, self.update)


@dataclass(frozen=True)
class _LocalParameter:
    """A parameter as one process holds it: its elements here, and how many processes hold the same ones."""

    numel: int
    holders: int
    expert: bool
    matrix: bool
    frozen: bool

    @property
    def shard(self) -> int:
        return _ceil_divide(self.numel, self.holders)


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
    local = []
    for size in parameters:
        # Only experts are spread.
        ways = expert_parallel if size.expert else 1
        local.append(_LocalParameter(size.numel // ways, processes // ways, size.expert, size.matrix, size.frozen))

    stage = zero.get("stage", 0)
    if stage == 3:
        return _sharded(local, zero, accumulation)
    # The engine knows nothing of frozen ones: they are computed with, and that is all.
    trained = [parameter for parameter in local if not parameter.frozen]
    num_frozen = sum(parameter.numel for parameter in local if parameter.frozen)
    if stage == 0:
        memory = _replicated(trained, accumulation)
    else:
        memory = _partitioned(trained, zero, accumulation)
    return replace(memory, weights=memory.weights + BYTES_FP32 * num_frozen)


# In the functions below numbers are elements until they go into `Memory`.


def _replicated(parameters: list[_LocalParameter], accumulation: int) -> Memory:
    """ZeRO 0: gradients are averaged after the backward pass in a copy, then AdamW takes one parameter at a time."""
    total = sum(parameter.numel for parameter in parameters)
    update_copies = UPDATE_COPIES * max(parameter.numel for parameter in parameters)
    # All parameters have the same holders: experts are not spread without ZeRO (launcher/recipe/deepspeed_config.py).
    if parameters[0].holders > 1:
        # The copies do not exist at one time: all is averaged before the first update.
        update_copies = max(update_copies, min(total, REDUCE_BUCKET))
    return Memory(
        weights=BYTES_FP32 * total,
        gradients=BYTES_FP32 * total,
        # The update is made in the weights themselves.
        master=0,
        moments=BYTES_FP32 * MOMENTS * total,
        communication=0,
        gathered=0,
        incoming=BYTES_FP32 * _incoming(parameters, accumulation),
        message=0,
        reduced=0.0,
        update=BYTES_FP32 * (total + update_copies),
    )


def _partitioned(parameters: list[_LocalParameter], zero: dict[str, Any], accumulation: int) -> Memory:
    """ZeRO 1 and 2: gradients pass through a bucket into a partition, which the update copies group by group."""
    # The optimizer's groups: matrices and vectors, and spread experts apart, which fewer processes hold.
    groups: Counter[tuple[bool, int]] = Counter()
    for parameter in parameters:
        groups[parameter.matrix, parameter.holders] += parameter.numel

    weights = 0
    owned = 0
    largest_partition = 0
    for (_, holders), numel in groups.items():
        multiple = ALIGNMENT * holders
        padded = multiple * _ceil_divide(numel, multiple)
        partition = padded // holders
        weights += padded
        owned += partition
        largest_partition = max(largest_partition, partition)

    bucket = _bucket(zero)
    filled = min(bucket, weights)
    if accumulation == 1:
        gradients = 0
        # The partition, and the copy that is sent.
        message = owned + filled
    elif zero["stage"] == 1:
        # ZeRO 1 reduces after the last micro-batch, and keeps whole gradients until then.
        gradients = weights
        message = owned
    else:
        # ZeRO 2 reduces those of every micro-batch, and adds them to the partition of those before.
        gradients = owned
        message = owned + filled

    return Memory(
        weights=BYTES_FP32 * weights,
        gradients=BYTES_FP32 * gradients,
        master=BYTES_FP32 * owned,
        moments=BYTES_FP32 * MOMENTS * owned,
        communication=BYTES_FP32 * bucket,
        gathered=0,
        incoming=BYTES_FP32 * _incoming(parameters, accumulation),
        message=BYTES_FP32 * message,
        reduced=filled / weights,
        # The gradients, and of one group at a time a flat copy of them and what AdamW computes with.
        update=BYTES_FP32 * (owned + (1 + UPDATE_COPIES) * largest_partition),
    )


def _sharded(parameters: list[_LocalParameter], zero: dict[str, Any], accumulation: int) -> Memory:
    """ZeRO 3: the buffer of the shards' gradients and the bucket stay from step to step."""
    threshold = zero.get("stage3_param_persistence_threshold", PERSISTENCE_THRESHOLD)
    max_live = int(zero.get("stage3_max_live_parameters", MAX_LIVE_PARAMETERS))
    max_fetched = int(zero.get("stage3_prefetch_bucket_size", PREFETCH_BUCKET))
    bucket = _bucket(zero)

    shards = 0
    trained_shards = 0
    persistent = 0
    gathered_in_turn = 0
    groups: Counter[bool] = Counter()
    for parameter in parameters:
        shards += parameter.shard
        if not parameter.frozen:
            trained_shards += parameter.shard
            groups[parameter.matrix] += parameter.shard
        if parameter.holders == 1:
            # A single holder's shard is the whole; nothing is gathered.
            continue
        if parameter.numel <= threshold:
            # Small parameters stay gathered, in copies as long as all their shards.
            persistent += parameter.shard * parameter.holders
        else:
            gathered_in_turn += parameter.numel

    return Memory(
        weights=BYTES_FP32 * (shards + persistent),
        gradients=BYTES_FP32 * trained_shards,
        master=BYTES_FP32 * trained_shards,
        moments=BYTES_FP32 * MOMENTS * trained_shards,
        communication=BYTES_FP32 * bucket,
        gathered=BYTES_FP32 * min(gathered_in_turn, max_live),
        incoming=BYTES_FP32 * _incoming(parameters, accumulation),
        message=BYTES_FP32 * min(gathered_in_turn, max_fetched),
        reduced=0.0,
        # As under ZeRO 1 and 2, beside the bucket, which is not given back.
        update=BYTES_FP32 * (trained_shards + bucket + (1 + UPDATE_COPIES) * max(groups.values())),
    )


def _incoming(parameters: Iterable[_LocalParameter], accumulation: int) -> int:
    """Elements of the gradients of one block's experts, before they are added to those of earlier micro-batches."""
    if accumulation == 1:
        # In the first micro-batch they come before the other gradients, so they are not at the peak.
        return 0
    largest = 0
    for parameter in parameters:
        if parameter.expert and parameter.matrix and not parameter.frozen:
            largest = max(largest, parameter.numel)
    return EXPERT_GRADIENT_COPIES * largest


def _bucket(zero: dict[str, Any]) -> int:
    """Elements of the buffers that ZeRO copies gradients to; it makes them in full, however small the model is."""
    if not zero.get("contiguous_gradients", True):
        return 0
    bucket = int(zero.get("reduce_bucket_size", REDUCE_BUCKET))
    if zero.get("overlap_comm") and zero["stage"] < 3:
        # One is filled while the other is sent.
        bucket *= 2
    return bucket


def _ceil_divide(number: int, divisor: int) -> int:
    return -(-number // divisor)
