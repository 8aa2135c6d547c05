"""From what each lane measured to one row of metrics.

Lanes' measures are sums; `agree` adds them up over all processes in one collective per step; a window keeps the mean
over the steps since the last row.
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
    """Choices per expert, the entropy summed over choices and, under a capacity, the choices that were dropped, for
    each named routing."""
    measures: StepMetrics = {}
    for name, routing in zip(names, routings, strict=True):
        measures[f"experts/{name}/load"] = routing.counts_E
        measures[f"experts/{name}/entropy"] = routing.entropy * routing.counts_E.sum()
        if routing.kept_NK is not None:
            measures[f"experts/{name}/dropped"] = (~routing.kept_NK).sum()
    return measures


def norm_metrics(moments: list[Tensor]) -> StepMetrics:
    """The moments of the valid frames in each BatchNorm, by layer."""
    return {f"{NORMS}layer-{layer:02d}/moments": values for layer, values in enumerate(moments)}


def add_metrics(sums: StepMetrics, measures: StepMetrics) -> None:
    """Add a lane's measures to those of the lanes before it."""
    for name, value in measures.items():
        sums[name] = sums[name] + value if name in sums else value


@dataclass(frozen=True)
class ReducedMetrics:
    """One step's measures over all lanes of all processes: single numbers, expert choices and BatchNorm's moments by
    layer."""

    scalars: dict[str, float]
    loads: dict[str, list[float]]
    moments: dict[str, list[float]]


def all_reduce_metrics(sums: StepMetrics, device: torch.device) -> ReducedMetrics:
    """Sum measures over all processes. Collective; every process must hold the same names."""
    names = sorted(sums)
    vector = torch.cat([sums[name].to(device).flatten().double() for name in names])
    dist.all_reduce(vector)
    values = iter(vector.tolist())  # once: on a GPU every single number read would wait for it
    agreed = ReducedMetrics({}, {}, {})
    for name in names:
        if sums[name].ndim:
            vectors = agreed.moments if name.startswith(NORMS) else agreed.loads
            vectors[name] = [next(values) for _ in range(sums[name].numel())]
        else:
            agreed.scalars[name] = next(values)
    return agreed


@dataclass
class MetricAccumulator:
    """Sums over the steps since the last row; part of a checkpoint, so that rows survive a resume.

    Loads and drops are turned into shares of each step's choices, entropies into means, before they are added.
    """

    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, agreed: ReducedMetrics, own: dict[str, float]) -> None:
        measures = {**agreed.scalars, **own}
        for name, load in agreed.loads.items():
            choices = max(sum(load), 1.0)
            measures |= {f"{name}/{expert}": count / choices for expert, count in enumerate(load)}
            for mean in (name.replace("/load", "/entropy"), name.replace("/load", "/dropped")):
                if mean in measures:
                    measures[mean] /= choices
        self.steps += 1
        for name, value in measures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def close(self) -> dict[str, Any]:
        """The mean of every measure, loads as one list per layer; the window is empty after that."""
        row: dict[str, Any] = {}
        for name, value in self.sums.items():
            layer, separator, _ = name.partition("/load/")
            if separator:
                row.setdefault(f"{layer}/load", []).append(value / self.steps)
            else:
                row[name] = value / self.steps
        self.steps, self.sums = 0, {}
        return row
