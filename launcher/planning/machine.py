"""What `chorus plan` may count on: the memory of a process, and how fast it computes and sends."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil
import torch

from launcher.devices import accelerator
from launcher.planning.communication import ASSUMED, Rates
from launcher.processes.worker_command import num_cores
from launcher.recipe import ClusterConfig

# Python, libraries and the process group: measured on processors; on GPUs CUDA's and NCCL's own memory, assumed.
FRAMEWORK_BYTES = {"cpu": 750 << 20, "cuda": 1 << 30}


@dataclass(frozen=True)
class Machine:
    """What each process has.

    - `available_bytes`: the memory that it can have; None where it is unknown.
    - `framework_bytes`: the memory that it takes before there is a model.
    - `rates`: how fast it computes and sends.
    """

    device: str
    available_bytes: int | None
    framework_bytes: int
    rates: Rates


def machine_of(cluster: ClusterConfig, hosts: Sequence[int]) -> Machine:
    """What a recipe's processes, so many on each of the hosts, can count on. Only this machine's memory is known."""
    if cluster.kind == "slurm" and cluster.slurm.gpus_per_node:
        # The machine that plans may have no GPU.
        device = "cuda"
    else:
        device = accelerator()

    rates = ASSUMED[device, cluster.precision]
    if device == "cpu":
        # The assumed rate is that of one core.
        threads = cluster.threads or max(1, num_cores() // max(hosts))
        rates = replace(rates, operations_per_s=threads * rates.operations_per_s)
    if cluster.exchange_bytes_per_s:
        rates = replace(rates, between_hosts_bytes_per_s=cluster.exchange_bytes_per_s)

    available_bytes = None
    if cluster.kind == "local":
        if device == "cuda":
            # Each process has a GPU to itself; the smallest is what all can count on.
            gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
            # Without any here, as on a login node, their memory is unknown.
            available_bytes = min((gpu.total_memory for gpu in gpus), default=None)
        else:
            available_bytes = psutil.virtual_memory().available // cluster.processes
    return Machine(device, available_bytes, FRAMEWORK_BYTES[device], rates)
