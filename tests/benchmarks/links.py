"""The model of communication against processes behind slow lines: `python -m tests.benchmarks.links` (Linux, root).

Two network namespaces are two nodes with two processes each. The line between them has the rate of a token bucket
(`tc`), which is so low that the time of the processors does not count. Measured are gloo's collectives, medians of some
rounds; `launcher/planning/scaling.py` predicts them from their bytes. Latencies are left out: this needs no module of
the kernel but `sch_tbf`, and a delay would need `sch_netem`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from launcher.planning.interconnect import Interconnect
from launcher.planning.scaling import Nodes, exchange_seconds, exposed_seconds, ring_seconds

PLACE = Nodes(nodes=2, cards=2)
NAMESPACES = ("chorus-links-0", "chorus-links-1")
INTERFACE = "line0"
ADDRESSES = ("10.98.0.1", "10.98.0.2")
PORT = 29711
# Of an Ethernet frame, what is payload of TCP.
PAYLOAD = 1448 / 1514
# gloo over the loopback, which is not what is waited for here.
WITHIN_BYTES_PER_S = 1e9
# A backward pass that is only waited for: two blocks that serve six layers each.
BACKWARD_S = 1.2
BLOCK_OF_LAYER = (0,) * 6 + (1,) * 6


@dataclass(frozen=True)
class Collective:
    """One kind of message of a training step, with the seconds that it is predicted to take."""

    name: str
    predicted_s: Callable[[int, Interconnect], float]


def _all_reduce_s(num_bytes: int, link: Interconnect) -> float:
    return ring_seconds(2 * num_bytes * 3 / 4, 1, 1, PLACE, link)


def _all_gather_s(num_bytes: int, link: Interconnect) -> float:
    return ring_seconds(num_bytes * 3 / 4, 1, 1, PLACE, link)


def _expert_gradients_s(num_bytes: int, link: Interconnect) -> float:
    # Half of the experts on each card of a node; the other node holds them too.
    return ring_seconds(2 * (num_bytes // 2) * 1 / 2, 2, 1, PLACE, link)


def _exchange_between_s(num_bytes: int, link: Interconnect) -> float:
    return exchange_seconds(num_bytes * 3 / 4, 1, 4, PLACE, link)


def _backward_s(num_bytes: int, link: Interconnect) -> float:
    gradients_s = _all_reduce_s(num_bytes, link)
    return BACKWARD_S + exposed_seconds(BLOCK_OF_LAYER, BACKWARD_S, gradients_s)


COLLECTIVES = (
    Collective("gradients, all-reduce over all", _all_reduce_s),
    Collective("weights, all-gather over all", _all_gather_s),
    Collective("gradients of experts spread within nodes, two all-reduces at a time", _expert_gradients_s),
    Collective("frames to experts over both nodes, all-to-all over all", _exchange_between_s),
    Collective("a backward pass with gradients of shared blocks beside it", _backward_s),
)


def work(rank: int, num_bytes: int, rounds: int) -> None:
    """One process: run every collective `rounds` times and, as the first one, print the seconds of each."""
    store = dist.TCPStore(ADDRESSES[0], PORT, PLACE.processes, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PLACE.processes)
    # Cards of different nodes that hold the same experts.
    groups = [dist.new_group([first, first + PLACE.cards]) for first in range(PLACE.cards)]
    values = torch.zeros(num_bytes // 4)
    parts = list(torch.zeros_like(values).chunk(PLACE.processes))
    half = values[: len(values) // 2].clone()
    received = torch.empty_like(values)
    blocks = sorted(set(BLOCK_OF_LAYER))
    gradients = values.chunk(len(blocks))

    def backward() -> None:
        works = []
        for layer in reversed(range(len(BLOCK_OF_LAYER))):
            time.sleep(BACKWARD_S / len(BLOCK_OF_LAYER))
            block = BLOCK_OF_LAYER[layer]
            if BLOCK_OF_LAYER.index(block) == layer:
                works.append(dist.all_reduce(gradients[block], async_op=True))
        for sent in works:
            sent.wait()

    calls: dict[str, Callable[[], object]] = {
        COLLECTIVES[0].name: lambda: dist.all_reduce(values),
        COLLECTIVES[1].name: lambda: dist.all_gather(parts, parts[rank].clone()),
        COLLECTIVES[2].name: lambda: dist.all_reduce(half, group=groups[rank % PLACE.cards]),
        COLLECTIVES[3].name: lambda: dist.all_to_all_single(received, values),
        COLLECTIVES[4].name: backward,
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            dist.barrier()
            started = time.perf_counter()
            call()
            # The slowest of them is what a step waits for.
            taken = torch.tensor(time.perf_counter() - started)
            dist.all_reduce(taken, dist.ReduceOp.MAX)
            # In the first round connections are made.
            if number:
                seconds[name].append(float(taken))
    if rank == 0:
        print(json.dumps(seconds), flush=True)
    dist.barrier()


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True)


def lay_line(rate_mbit: float) -> None:
    """Make both namespaces and the line between them."""
    for namespace in NAMESPACES:
        _run(f"ip netns add {namespace}")
        _run(f"ip -n {namespace} link set lo up")
    _run(f"ip link add {INTERFACE} netns {NAMESPACES[0]} type veth peer name {INTERFACE} netns {NAMESPACES[1]}")
    for namespace, address in zip(NAMESPACES, ADDRESSES, strict=True):
        _run(f"ip -n {namespace} addr add {address}/24 dev {INTERFACE}")
        _run(f"ip -n {namespace} link set {INTERFACE} up")
        bucket = f"tbf rate {rate_mbit}mbit burst 128kb latency 400ms"
        _run(f"ip netns exec {namespace} tc qdisc add dev {INTERFACE} root {bucket}")


def remove_line() -> None:
    for namespace in NAMESPACES:
        subprocess.run(["ip", "netns", "del", namespace], check=False, stderr=subprocess.DEVNULL)


def measure(rate_mbit: float, num_bytes: int, rounds: int) -> dict[str, list[float]]:
    """The seconds of each collective over a line of this rate."""
    remove_line()
    try:
        lay_line(rate_mbit)
        ranks = []
        for rank in range(PLACE.processes):
            command = [
                "ip",
                "netns",
                "exec",
                NAMESPACES[rank // PLACE.cards],
                sys.executable,
                "-m",
                "tests.benchmarks.links",
            ]
            command += ["--rank", str(rank), "--bytes", str(num_bytes), "--rounds", str(rounds)]
            environment = {**os.environ, "GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1"}
            output = subprocess.PIPE if rank == 0 else None
            ranks.append(subprocess.Popen(command, env=environment, stdout=output, text=True))
        text, _ = ranks[0].communicate()
        for process in ranks:
            if process.wait():
                sys.exit(f"A process ended with exit code {process.returncode}.")
        return json.loads(text)
    finally:
        remove_line()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--bytes", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mbit", type=float, nargs="+", default=[50.0, 100.0, 200.0])
    options = parser.parse_args()
    if options.rank is not None:
        work(options.rank, options.bytes, options.rounds)
        return
    print("| line | collective | measured, s | predicted, s | ratio |\n|---|---|---:|---:|---:|")
    for rate_mbit in options.mbit:
        between = PAYLOAD * rate_mbit * 1e6 / 8
        link = Interconnect(WITHIN_BYTES_PER_S, between, within_latency_s=0.0, between_latency_s=0.0)
        seconds = measure(rate_mbit, options.bytes, options.rounds)
        for collective in COLLECTIVES:
            measured_s = statistics.median(seconds[collective.name])
            predicted_s = collective.predicted_s(options.bytes, link)
            print(
                f"| {rate_mbit:g} Mbit/s | {collective.name} | {measured_s:.3f} | {predicted_s:.3f} | "
                f"{measured_s / predicted_s:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
