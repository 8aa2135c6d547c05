"""A teacher's units: clusters of the states of one of its layers, which a student learns to predict (Hsu et al.,
HuBERT, 2021).

They are made once, at the start of a stage, by k-means over frames that the teacher hears in the first steps, whoever
runs the lanes of these. The first process makes them and writes them into the stage's folder, from where a stage that
goes on reads them again.

Shapes: B batch, S frames, N frames of all utterances, C clusters, D width of the teacher.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from launcher.errors import CheckpointError, ConfigError
from launcher.recipe.distillation import UnitsDistillConfig

CENTROIDS = "centroids"
# Distances are computed for so many frames at a time.
FRAMES_AT_ONCE = 8192


def nearest_units(states: Tensor, centroids_CD: Tensor) -> Tensor:
    """The cluster of each state [..., D]: that of the nearest centroid, in fp32."""
    # |x - c|^2 without |x|^2, which is the same for all clusters.
    with torch.autocast(states.device.type, enabled=False):
        nearness = states.float() @ centroids_CD.T - centroids_CD.square().sum(-1) / 2
    return nearness.argmax(-1)


def k_means(states_ND: Tensor, count: int, iterations: int, seed: int) -> Tensor:
    """Centroids [C, D] of states: k-means++ (Arthur and Vassilvitskii, 2007), then Lloyd's rounds until nothing moves.

    A cluster that loses all its states keeps its place.
    """
    generator = torch.Generator().manual_seed(seed)
    centroids_CD = _spread_start(states_ND, count, generator)
    units_N = None
    for _ in range(iterations):
        before_N, units_N = (
            units_N,
            torch.cat([nearest_units(x, centroids_CD) for x in states_ND.split(FRAMES_AT_ONCE)]),
        )
        if before_N is not None and units_N.equal(before_N):
            break
        sums_CD = torch.zeros_like(centroids_CD, dtype=torch.float64).index_add_(0, units_N, states_ND.double())
        sizes_C = torch.bincount(units_N, minlength=count)
        means_CD = (sums_CD / sizes_C.clamp(min=1)[:, None]).float()
        centroids_CD = torch.where(sizes_C[:, None] > 0, means_CD, centroids_CD)
    return centroids_CD


def _spread_start(states_ND: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """States drawn one after the other, each with a chance that grows with its squared distance from those before."""
    chosen = [int(torch.randint(len(states_ND), (1,), generator=generator))]
    distances_N = torch.full((len(states_ND),), torch.inf, dtype=torch.float64)
    for _ in range(count - 1):
        from_last_N = (states_ND - states_ND[chosen[-1]]).double().square().sum(-1)
        distances_N = torch.minimum(distances_N, from_last_N)
        chances_N = distances_N if distances_N.sum() > 0 else torch.ones_like(distances_N)
        chosen.append(int(torch.multinomial(chances_N, 1, generator=generator)))
    return states_ND[chosen].clone()


def sample_states(states: Iterator[Tensor], config: UnitsDistillConfig, seed: int, who: str) -> Tensor:
    """A seeded sample [N, D], on the CPU, of the states of valid frames; ConfigError when they are fewer than units."""
    every_ND = torch.cat([found_ND.float().cpu() for found_ND in states])
    if len(every_ND) < config.count:
        raise ConfigError(
            f"{who} has {len(every_ND)} frames in the first {config.steps} steps, too few for {config.count} units. "
            "Raise distill.units.steps or lower distill.units.count."
        )
    generator = torch.Generator().manual_seed(seed)
    return every_ND[torch.randperm(len(every_ND), generator=generator)[: config.frames].sort().values]


def write_units(path: Path, centroids_CD: Tensor) -> None:
    """Write centroids whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({CENTROIDS: centroids_CD}, temporary)
    temporary.replace(path)


def read_units(path: Path, count: int) -> Tensor:
    """Centroids that were written before; CheckpointError when there are not `count` of them to read."""
    try:
        centroids_CD = load_file(path)[CENTROIDS]
    except (OSError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"The units in {path} cannot be read: {error}. Remove the file: the same ones are made again."
        ) from None
    if len(centroids_CD) != count:
        raise CheckpointError(
            f"{path} holds {len(centroids_CD)} units, and distill.units.count is {count}. Remove the stage's folder: "
            "it was begun with other settings."
        )
    return centroids_CD
