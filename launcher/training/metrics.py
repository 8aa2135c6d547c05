"""From what each lane measured to one row of metrics.jsonl.

A lane's metrics are sums. `all_reduce_metrics` adds them up over all processes, in one collective per step. A
`MetricAccumulator` keeps the means over the steps since the last row.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.moe.router import Routing

StepMetrics = dict[str, Tensor]

NORMS = "norms/"


def routing_metrics(routings: list[Routing], names: list[str]) -> StepMetrics:
    """A lane's numbers of each named routing: `load`, the choices per expert [E]; `entropy`, summed over choices; and
    `dropped`, the choices beyond a capacity where there is one."""
    metrics: StepMetrics = {}
    for name, routing in zip(names, routings, strict=True):
        metrics[f"experts/{name}/load"] = routing.counts_E
        # A sum: a mean per lane would count a lane of few frames as much as one of many.
        metrics[f"experts/{name}/entropy"] = routing.entropy * routing.counts_E.sum()
        if routing.kept_NK is not None:
            metrics[f"experts/{name}/dropped"] = (~routing.kept_NK).sum()
    return metrics


def norm_metrics(moments: list[Tensor]) -> StepMetrics:
    """The moments of a lane's valid frames in each BatchNorm, by layer."""
    metrics: StepMetrics = {}
    for layer, values in enumerate(moments):
        metrics[f"{NORMS}layer-{layer:02d}/moments"] = values
    return metrics


def add_metrics(sums: StepMetrics, metrics: StepMetrics) -> None:
    """Add a lane's metrics to those of the lanes before it."""
    for name, value in metrics.items():
        if name in sums:
            sums[name] = sums[name] + value
        else:
            sums[name] = value


@dataclass(frozen=True)
class ReducedMetrics:
    """One step's metrics, summed over all lanes of all processes.

    scalars: single numbers. loads: choices per expert, by routing. moments: those of BatchNorm, by layer.
    """

    scalars: dict[str, float]
    loads: dict[str, list[float]]
    moments: dict[str, list[float]]


def all_reduce_metrics(sums: StepMetrics, device: torch.device) -> ReducedMetrics:
    """Sum metrics over all processes. Collective; every process must hold the same names."""
    # One vector in one order of names, so that a step costs one collective. Counts are exact in fp64 up to 2^53.
    names = sorted(sums)
    vectors = []
    for name in names:
        vectors.append(sums[name].to(device).flatten().double())
    vector = torch.cat(vectors)
    dist.all_reduce(vector)

    # Read back at once: on a GPU every single number would wait for the device.
    values = vector.tolist()
    reduced = ReducedMetrics({}, {}, {})
    start = 0
    for name in names:
        stop = start + sums[name].numel()
        if not sums[name].ndim:
            reduced.scalars[name] = values[start]
        elif name.startswith(NORMS):
            reduced.moments[name] = values[start:stop]
        else:
            reduced.loads[name] = values[start:stop]
        start = stop
    return reduced


@dataclass
class MetricAccumulator:
    """Sums over the steps since the last row. It is part of a checkpoint, so that a row survives a resume."""

    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, reduced: ReducedMetrics, **measured: float) -> None:
        """Add a step: its reduced metrics, and what every process has measured alike."""
        metrics = {**reduced.scalars, **measured}

        # Every step counts the same in a row, however many frames it had: loads and drops become shares of the step's
        # choices and entropies means over them before they are added.
        for name, load in reduced.loads.items():
            num_choices = max(sum(load), 1.0)
            for expert, count in enumerate(load):
                metrics[f"{name}/{expert}"] = count / num_choices
            for kind in ("/entropy", "/dropped"):
                sum_name = name.replace("/load", kind)
                if sum_name in metrics:
                    metrics[sum_name] /= num_choices

        self.steps += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def add_skipped(self, reduced: ReducedMetrics) -> None:
        """Count what a step without an update has quarantined. What it measured is not finite and is not added."""
        earlier = self.sums.get("quarantined", 0.0)
        self.sums["quarantined"] = earlier + reduced.scalars["quarantined"]

    def close(self) -> dict[str, Any]:
        """The mean of every metric, loads as one list per routing. The accumulator is empty after that."""
        row: dict[str, Any] = {}
        for name, value in self.sums.items():
            routing, is_load, _ = name.partition("/load/")
            if is_load:
                row.setdefault(f"{routing}/load", []).append(value / self.steps)
            else:
                row[name] = value / self.steps
        self.steps = 0
        self.sums = {}
        return row
