"""What `chorus plan` may count on: the memory of a process, and how fast it computes and sends."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from launcher.planning.communication import ASSUMED, Rates
from launcher.processes.worker_command import accelerator, num_cores
from launcher.recipe import ClusterConfig

# Python, libraries and the process group: measured on processors; on GPUs CUDA's and NCCL's own memory, assumed.
FRAMEWORK_BYTES = {"cpu": 750 << 20, "cuda": 1 << 30}


@dataclass(frozen=True)
class Machine:
    """For each process: bytes of memory that it can have (none: unknown), bytes that it takes before there is a model,
    and its rates."""

    device: str
    available_bytes: int | None
    framework_bytes: int
    rates: Rates


def machine_of(cluster: ClusterConfig, hosts: Sequence[int]) -> Machine:
    """What a recipe's processes, so many on each of the hosts, can count on. Only this machine's memory is known."""
    device = "cuda" if cluster.kind == "slurm" and cluster.slurm.gpus_per_node else accelerator()
    rates = ASSUMED[device, cluster.precision]
    if device == "cpu":
        threads = cluster.threads or max(1, num_cores() // max(hosts))
        rates = replace(rates, operations_per_s=threads * rates.operations_per_s)
    if cluster.exchange_bytes_per_s:
        rates = replace(rates, between_hosts_bytes_per_s=cluster.exchange_bytes_per_s)
    available = _memory_here(device, cluster.processes) if cluster.kind == "local" else None
    return Machine(device, available, FRAMEWORK_BYTES[device], rates)


def _memory_here(device: str, processes: int) -> int:
    """Each process's part of the memory that is free here, or its GPU's."""
    if device == "cuda":
        import torch

        return min(torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count()))
    import psutil

    return psutil.virtual_memory().available // processes
