"""Timing of variants against each other, in turns: what disturbs one of them disturbs all.

Processes of `torchrun --nproc-per-node P` run each variant at the same time, as those of a training do; torchrun gives
each of them one thread.
"""

import ctypes
import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, distributed

Variants = dict[str, Callable[[], object]]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory() -> None:
    """Have glibc keep up to 1 GiB that is freed, as the heap of a whole model's step does by its size.

    A layer alone would give the memory of its gradients back after every step, and wait for the kernel to clear it
    again in the next.
    """
    mallopt = ctypes.CDLL(None).mallopt
    for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        if not mallopt(parameter, 2**30):
            raise OSError(f"mallopt({parameter}, 2**30) was refused.")


def join_processes() -> int:
    """How many processes measure together; joins them where torchrun has started this one."""
    if "WORLD_SIZE" not in os.environ:
        return 1
    distributed.init_process_group("gloo")
    return distributed.get_world_size()


def leave_processes() -> None:
    """The end of the group, where there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def tell(line: str) -> None:
    """A line of the result, once for all processes."""
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        print(line, flush=True)


def time_in_turns(
    variants: Variants, rounds: int, before_round: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """The median seconds of each variant over so many rounds, after one that does not count; mean over processes.

    `before_round`, which is not timed, may change what the variants work on.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        before_round()
        for name, run in variants.items():
            if distributed.is_initialized():
                distributed.barrier()
            _finish_queued()
            started = time.perf_counter()
            run()
            _finish_queued()
            if number:
                times[name].append(time.perf_counter() - started)
    return {name: _over_processes(statistics.median(values)) for name, values in times.items()}


def _finish_queued() -> None:
    """Wait for a GPU that is used: its work is only queued when a call returns."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _over_processes(seconds: float) -> float:
    if not distributed.is_initialized():
        return seconds
    # NCCL takes tensors of its GPUs alone.
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor(seconds, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return float(total) / distributed.get_world_size()


def step_of(
    forward: Callable[[], Tensor], precision: str, training: bool = True, device: str = "cpu"
) -> Callable[[], None]:
    """A step to be timed: forward in a precision and, in training, backward from the mean square of what it gives."""

    def step() -> None:
        with torch.set_grad_enabled(training), precision_context(precision, device):
            output = forward()
        if training:
            output.float().square().mean().backward()

    return step


def precision_context(precision: str, device: str = "cpu") -> AbstractContextManager:
    """fp32 as it is, bf16 through autocast."""
    return torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()
