"""What processes send each other in a step, from shapes alone, and how long it takes beside the computation.

Counted are the bytes that one process sends, collectives as rings: an all-reduce of n bytes over g processes sends
2 n (g - 1) / g, a reduction to owners, a gathering of their parts or an all-to-all half of that. The rates of a machine
are assumed unless they are given; nothing here decides more than which of several choices sends less.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.planning.memory import BYTES_FP32, ParameterSize

# Dispatch and combine, each forward and backward.
EXCHANGES = 4
# With activation checkpointing the backward pass runs the forward pass again.
EXCHANGES_RUN_AGAIN = 6
# ZeRO 3 gathers weights for the forward and again for the backward pass.
ZERO_3_GATHERS = 2


@dataclass(frozen=True)
class Rates:
    """Of one process: operations per s of matrix products, and bytes per s sent within its host and to other hosts."""

    operations_per_s: float
    within_host_bytes_per_s: float
    between_hosts_bytes_per_s: float


# A core with AVX-512 and gloo over the loopback; a data-centre GPU at a third of its peak, PCIe 4 and 10 Gbit/s.
ASSUMED = {
    ("cpu", "fp32"): Rates(5e10, 1e9, 1.25e9),
    ("cpu", "bf16"): Rates(5e10, 1e9, 1.25e9),
    ("cuda", "fp32"): Rates(1.5e13, 2e10, 1.25e9),
    ("cuda", "bf16"): Rates(1e14, 2e10, 1.25e9),
}


@dataclass(frozen=True)
class Exchanged:
    """What travels to experts in a step on one process.

    - `frames`: those of all its micro-batches.
    - `uses`: how often each is sent in a pass: experts per frame x layers x experts' places in a layer.
    - `width`, `value_bytes`: the elements of a frame, and the bytes of each.
    - `run_again`: whether layers compute their forward pass again in the backward pass.
    """

    frames: int
    uses: int
    width: int
    value_bytes: int
    run_again: bool = False

    def sent_bytes(self, expert_parallel: int) -> int:
        exchanges = EXCHANGES_RUN_AGAIN if self.run_again else EXCHANGES
        size_bytes = exchanges * self.frames * self.uses * self.width * self.value_bytes
        # An all-to-all keeps the frames for a process's own experts: 1 / expert_parallel with a balanced router.
        return size_bytes * (expert_parallel - 1) // expert_parallel


@dataclass(frozen=True)
class Traffic:
    """Bytes that a process sends in a step: gradients of experts and of all else, weights that ZeRO hands round, frames
    to experts and back."""

    gradients: int
    expert_gradients: int
    weights: int
    frames: int

    @property
    def total(self) -> int:
        return self.gradients + self.expert_gradients + self.weights + self.frames


def traffic(
    parameters: Sequence[ParameterSize],
    processes: int,
    expert_parallel: int,
    zero_stage: int,
    accumulation: int,
    exchanged: Exchanged | None,
) -> Traffic:
    """What one process sends in a step of `accumulation` micro-batches; `exchanged` is None without experts.

    Gradients are averaged over the processes that hold the same values: all, or, of spread experts,
    processes / expert_parallel; ZeRO 0 and 1 do so once per step, 2 and 3 after every micro-batch.
    """
    spread_numel = 0
    common_numel = 0
    for parameter in parameters:
        if parameter.expert and expert_parallel > 1:
            spread_numel += parameter.numel
        else:
            common_numel += parameter.numel
    common_bytes = _scatter_bytes(common_numel, processes)
    expert_bytes = _scatter_bytes(spread_numel // expert_parallel, processes // expert_parallel)

    # In halves of an all-reduce. DeepSpeed's ZeRO 1 and 2 send whole buckets to all (an all-reduce); ZeRO 3 sends parts
    # to their owners.
    reductions = 1 if zero_stage == 3 else 2
    if zero_stage >= 2:
        reductions *= accumulation

    if zero_stage == 0:
        gathers = 0
    elif zero_stage == 3:
        gathers = ZERO_3_GATHERS * accumulation
    else:
        # After the update, each process's part of it.
        gathers = 1

    frames = 0
    if exchanged is not None:
        frames = exchanged.sent_bytes(expert_parallel)
    return Traffic(
        gradients=reductions * common_bytes,
        expert_gradients=reductions * expert_bytes,
        weights=gathers * (common_bytes + expert_bytes),
        frames=frames,
    )


def _scatter_bytes(numel: int, processes: int) -> int:
    """Bytes that a process sends where fp32 elements are reduced to their owners, or gathered: half an all-reduce."""
    return BYTES_FP32 * numel * (processes - 1) // processes


def crosses_hosts(expert_parallel: int, hosts: Sequence[int]) -> bool:
    """Whether processes that share a set of experts, which have consecutive ranks, sit on several of the hosts, each
    with so many processes."""
    return any(processes % expert_parallel for processes in hosts)


def seconds(sent: Traffic, expert_parallel: int, hosts: Sequence[int], rates: Rates) -> float:
    """How long the sending takes at the rates of a machine, one message after the other.

    `hosts` are the processes of each host.
    """
    gradient_rate = rates.within_host_bytes_per_s
    exchange_rate = rates.within_host_bytes_per_s
    if len(hosts) > 1:
        # A host's processes share its line.
        between_hosts_rate = rates.between_hosts_bytes_per_s / max(hosts)
        gradient_rate = between_hosts_rate
        if crosses_hosts(expert_parallel, hosts):
            exchange_rate = between_hosts_rate
    return (sent.total - sent.frames) / gradient_rate + sent.frames / exchange_rate
