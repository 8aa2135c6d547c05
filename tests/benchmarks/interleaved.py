"""Timing of variants against each other, in turns: what disturbs one of them disturbs all."""

import ctypes
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

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


def time_in_turns(variants: Variants, rounds: int) -> dict[str, float]:
    """The median seconds of each variant over so many rounds, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def precision_context(precision: str) -> AbstractContextManager:
    """fp32 as it is, bf16 through autocast."""
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
