"""Timing of variants against each other, in turns: what disturbs one of them disturbs all."""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

Variants = dict[str, Callable[[], object]]


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
