"""What processes send each other in a step, from shapes alone, and how long it takes beside the computation.

Counted are the bytes that one process sends, collectives as rings: an all-reduce of n bytes over g processes sends
2 n (g - 1) / g, a reduction to owners, a gathering of their parts or an all-to-all half of that. The rates of a machine
are assumed unless they are given; nothing here decides more than which of several choices sends less.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.planning.memory import BYTES_FP32, ParameterSize

# Dispatch and combine, each forward and backward.
EXCHANGES, EXCHANGES_RUN_AGAIN = 4, 6
# ZeRO 3 puts weights together for the forward and again for the backward pass.
GATHERINGS = 2


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
    """What travels to experts in a step on one process: frames of all its micro-batches, how often each is sent in a
    pass (experts per frame, layers and places together), its width, bytes of a number."""

    frames: int
    uses: int
    width: int
    value_bytes: int
    run_again: bool = False

    def sent_bytes(self, expert_parallel: int) -> int:
        exchanges = EXCHANGES_RUN_AGAIN if self.run_again else EXCHANGES
        size = exchanges * self.frames * self.uses * self.width * self.value_bytes
        return size * (expert_parallel - 1) // expert_parallel


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
    """What one process sends in a step of `accumulation` micro-batches.

    Gradients are averaged over the processes that hold the same values: all, or, of spread experts,
    processes / expert_parallel; ZeRO 0 and 1 do so once per step, 2 and 3 after every micro-batch.
    """
    experts = sum(size.numel for size in parameters if size.expert) if expert_parallel > 1 else 0
    others = sum(size.numel for size in parameters) - experts
    passes = accumulation if zero_stage >= 2 else 1
    of_others = _once(others, processes)
    of_experts = _once(experts // expert_parallel, processes // expert_parallel)
    # DeepSpeed's ZeRO 1 and 2 send whole buckets to all (an all-reduce); ZeRO 3 sends parts to their owners.
    reductions = passes * (1 if zero_stage == 3 else 2)
    handings = {0: 0, 1: 1, 2: 1, 3: GATHERINGS * accumulation}[zero_stage]
    return Traffic(
        gradients=reductions * of_others,
        expert_gradients=reductions * of_experts,
        weights=handings * (of_others + of_experts),
        frames=exchanged.sent_bytes(expert_parallel) if exchanged else 0,
    )


def _once(numel: int, processes: int) -> int:
    return BYTES_FP32 * numel * (processes - 1) // processes


def crosses_hosts(expert_parallel: int, hosts: Sequence[int]) -> bool:
    """Whether processes that share a set of experts, which have consecutive ranks, sit on several of the hosts, each
    with so many processes."""
    return any(number % expert_parallel for number in hosts)


def seconds(sent: Traffic, expert_parallel: int, hosts: Sequence[int], rates: Rates) -> float:
    """How long the sending takes at the rates of a machine, one after the other; a host's processes share its line."""
    between = rates.between_hosts_bytes_per_s / max(hosts)
    everywhere = rates.within_host_bytes_per_s if len(hosts) == 1 else between
    exchange = between if len(hosts) > 1 and crosses_hosts(expert_parallel, hosts) else rates.within_host_bytes_per_s
    return (sent.total - sent.frames) / everywhere + sent.frames / exchange
