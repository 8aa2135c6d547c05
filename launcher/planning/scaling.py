"""What a step takes on many nodes, from shapes alone: bytes over the links, seconds, and what can be hidden.

Collectives are rings that pass the cards of a node one after the other. So a ring's bytes leave each node once, however
many cards the node has, and the lines of a node carry them together. Frames of an all-to-all leave it once for each
card. Every card has a micro-batch of the recipe's size; the cost of a step on one card is that of `chorus plan`.

A shared block has one gradient, however many layers use it: it is reduced once, and not before the backward pass has
reached the lowest of these layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher.planning.communication import Exchanged, Traffic, traffic
from launcher.planning.interconnect import Interconnect
from launcher.planning.memory import BYTES_FP32, REDUCE_BUCKET, ParameterSize, memory_per_process

# The backward pass is two products for each one of the forward pass.
BACKWARD_SHARE = 2 / 3
# Counts, frames and results in the forward pass, gradients of the last two in the backward pass.
CALLS_PER_USE = 5


@dataclass(frozen=True)
class Nodes:
    """So many nodes with so many cards each; ranks are given node by node."""

    nodes: int
    cards: int

    @property
    def processes(self) -> int:
        return self.nodes * self.cards


@dataclass(frozen=True)
class StepShapes:
    """What a card computes in a step of one micro-batch.

    - `parameters`: those that are trained and frozen, each once.
    - `block_of_layer`: which block each layer uses, from the lowest layer up.
    - `exchanged`: what travels to experts; None without experts. `experts`: of a block, 0 without. `expert_uses`: how
      often a micro-batch is sent to some, layers x their places in a layer.
    - `compute_s`: forward and backward on one card.
    - `kept_bytes`: teachers, and what libraries take. `activation_bytes`: of the micro-batch.
    """

    parameters: Sequence[ParameterSize]
    block_of_layer: Sequence[int]
    exchanged: Exchanged | None
    experts: int
    expert_uses: int
    compute_s: float
    kept_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class ScaledStep:
    """A step under one ZeRO stage and expert-parallel size.

    - `within_bytes`, `between_bytes`: what a card sends within its node, and a node to others.
    - `communication_s`: all of it, one after the other. `exposed_s`: what is left of it where gradients travel while
      the backward pass goes on.
    - `efficiency`: the share of a step that computes, with what is left of the communication.
    """

    zero_stage: int
    expert_parallel: int
    memory_bytes: int
    within_bytes: float
    between_bytes: float
    communication_s: float
    exposed_s: float
    efficiency: float


def ring_seconds(sent_bytes: float, rings: int, messages: int, place: Nodes, link: Interconnect) -> float:
    """Seconds of collectives in which each process sends `sent_bytes`, along `rings` disjoint rings at a time that all
    cross the same lines, in `messages` calls."""
    if sent_bytes == 0:
        return 0.0
    seconds = sent_bytes / link.within_bytes_per_s
    latency_s = 2 * (place.cards - 1) * link.within_latency_s
    if place.nodes > 1:
        seconds = max(seconds, rings * sent_bytes / link.between_bytes_per_s)
        # Between many nodes libraries take trees, whose depth grows with the logarithm.
        latency_s += 2 * math.ceil(math.log2(place.nodes)) * link.between_latency_s
    return seconds + messages * latency_s


def exchange_seconds(
    exchanged_bytes: float, calls: int, expert_parallel: int, place: Nodes, link: Interconnect
) -> float:
    """Seconds of all-to-alls in which each process sends `exchanged_bytes` to the others that share its experts."""
    if expert_parallel == 1 or exchanged_bytes == 0:
        return 0.0
    within, between = _split_exchange(exchanged_bytes, expert_parallel, place)
    seconds = within / link.within_bytes_per_s
    latency_s = link.within_latency_s
    if between:
        seconds = max(seconds, between / link.between_bytes_per_s)
        latency_s = link.between_latency_s
    return seconds + calls * latency_s


def _split_exchange(exchanged_bytes: float, expert_parallel: int, place: Nodes) -> tuple[float, float]:
    """What a card sends within its node, and all cards of a node to other nodes."""
    others = expert_parallel - 1
    neighbours = min(expert_parallel, place.cards) - 1
    within = exchanged_bytes * neighbours / others
    between = place.cards * exchanged_bytes * (others - neighbours) / others
    return within, between


def exposed_seconds(block_of_layer: Sequence[int], backward_s: float, gradients_s: float) -> float:
    """Seconds by which the reduction of gradients outlasts the backward pass that it runs beside.

    The layers take equally long, from the last down. A block's gradient can be sent when the lowest layer that uses it
    is done; the link sends one after the other. All blocks are taken to be as large.
    """
    layers = len(block_of_layer)
    blocks = sorted(set(block_of_layer))
    block_s = gradients_s / len(blocks)
    ready = []
    for block in blocks:
        lowest = block_of_layer.index(block)
        ready.append(backward_s * (layers - lowest) / layers)
    link_free_s = 0.0
    for ready_s in sorted(ready):
        link_free_s = max(link_free_s, ready_s) + block_s
    return max(0.0, link_free_s - backward_s)


def scale_step(
    shapes: StepShapes, place: Nodes, link: Interconnect, zero: dict[str, Any], expert_parallel: int
) -> ScaledStep:
    """The step on these nodes, under the `zero_optimization` of a DeepSpeed configuration."""
    zero_stage = zero.get("stage", 0)
    processes = place.processes
    exchanged_parameters = shapes.parameters
    if zero_stage < 3:
        # Only ZeRO 3 sends frozen weights.
        exchanged_parameters = [size for size in shapes.parameters if not size.frozen]
    sent = traffic(exchanged_parameters, processes, expert_parallel, zero_stage, 1, shapes.exchanged)

    bucket_bytes = BYTES_FP32 * zero.get("reduce_bucket_size", REDUCE_BUCKET)
    expert_rings = min(expert_parallel, place.cards)
    gradients_s = ring_seconds(sent.gradients, 1, _calls(sent.gradients, bucket_bytes), place, link)
    gradients_s += ring_seconds(
        sent.expert_gradients, expert_rings, _calls(sent.expert_gradients, bucket_bytes), place, link
    )
    expert_weights = _expert_weights(sent)
    other_weights = sent.weights - expert_weights
    weights_s = ring_seconds(other_weights, 1, _calls(other_weights, bucket_bytes), place, link)
    weights_s += ring_seconds(expert_weights, expert_rings, _calls(expert_weights, bucket_bytes), place, link)
    calls = CALLS_PER_USE * shapes.expert_uses
    exchange_s = exchange_seconds(sent.frames, calls, expert_parallel, place, link)

    exposed_s = exposed_seconds(shapes.block_of_layer, BACKWARD_SHARE * shapes.compute_s, gradients_s)
    # Nothing is computed while weights are handed round after the update, and experts wait for their frames.
    exposed_s += weights_s + exchange_s
    within, between = _bytes_sent(sent, expert_parallel, place)
    memory = memory_per_process(shapes.parameters, processes, expert_parallel, zero)
    return ScaledStep(
        zero_stage=zero_stage,
        expert_parallel=expert_parallel,
        memory_bytes=memory.peak(shapes.activation_bytes) + shapes.kept_bytes,
        within_bytes=within,
        between_bytes=between,
        communication_s=gradients_s + weights_s + exchange_s,
        exposed_s=exposed_s,
        efficiency=shapes.compute_s / (shapes.compute_s + exposed_s),
    )


def expert_parallel_sizes(experts: int, place: Nodes) -> list[int]:
    """The sizes that divide experts and processes: one, the largest within a node, and the largest of all."""
    sizes = [1]
    for size in range(2, min(experts, place.processes) + 1):
        if experts % size == 0 and place.processes % size == 0:
            sizes.append(size)
    within_node = [size for size in sizes if place.cards % size == 0]
    return sorted({1, within_node[-1], sizes[-1]})


def _bytes_sent(sent: Traffic, expert_parallel: int, place: Nodes) -> tuple[float, float]:
    """What a card sends within its node, and a node to others."""
    of_experts = sent.expert_gradients + _expert_weights(sent)
    common = sent.total - sent.frames - of_experts
    within = common + of_experts
    between = 0.0
    if place.nodes > 1:
        between = common + min(expert_parallel, place.cards) * of_experts
    if expert_parallel > 1:
        exchange_within, exchange_between = _split_exchange(sent.frames, expert_parallel, place)
        within += exchange_within
        between += exchange_between
    return within, between


def _calls(sent_bytes: float, bucket_bytes: float) -> int:
    return math.ceil(sent_bytes / bucket_bytes)


def _expert_weights(sent: Traffic) -> float:
    """Of the weights that are handed round, those of spread experts: as much of them as of the gradients."""
    return sent.weights * sent.expert_gradients / max(1, sent.gradients + sent.expert_gradients)
