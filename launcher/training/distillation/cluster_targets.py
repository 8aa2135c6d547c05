"""A teacher's units: clusters of the states of one of its layers, which a student learns to predict (Hsu et al.,
HuBERT, 2021).

They are made once, at the start of a stage, by k-means over the teacher's states in the first steps, of all lanes. The
first process makes them and writes them into the stage's folder; a stage that resumes reads them there.

Shapes: B batch, S frames, N frames of all utterances, C clusters, D width of the teacher.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.files import replacing
from launcher.errors import CheckpointError, ConfigError
from launcher.recipe.distillation import UnitsDistillConfig

CENTROIDS = "centroids"
# Distances are computed for so many frames at a time, which bounds their memory to this number times the clusters.
FRAMES_AT_ONCE = 8192


def nearest_units(states: Tensor, centroids_CD: Tensor) -> Tensor:
    """The cluster of each state [..., D]: that of the nearest centroid, in fp32."""
    with torch.autocast(states.device.type, enabled=False):
        # The nearest c minimises |x - c|^2 = |x|^2 - 2 x.c + |c|^2, where |x|^2 is the same for all clusters: it
        # maximises x.c - |c|^2 / 2.
        products = states.float() @ centroids_CD.T
        half_norms_C = centroids_CD.square().sum(-1) / 2
        nearness = products - half_norms_C
    return nearness.argmax(-1)


def k_means(states_ND: Tensor, count: int, iterations: int, seed: int) -> Tensor:
    """Centroids [C, D] of states: k-means++, then Lloyd's rounds until no state changes its cluster.

    A cluster that loses all its states keeps its centroid.
    """
    generator = torch.Generator().manual_seed(seed)
    centroids_CD = k_means_plus_plus(states_ND, count, generator)
    previous_units_N = None
    for _ in range(iterations):
        units: list[Tensor] = []
        for chunk_ND in states_ND.split(FRAMES_AT_ONCE):
            units.append(nearest_units(chunk_ND, centroids_CD))
        units_N = torch.cat(units)
        if previous_units_N is not None and units_N.equal(previous_units_N):
            break
        previous_units_N = units_N

        # Sums of tens of thousands of states: fp32 would lose digits.
        sums_CD = torch.zeros_like(centroids_CD, dtype=torch.float64)
        sums_CD.index_add_(0, units_N, states_ND.double())
        sizes_C = torch.bincount(units_N, minlength=count)
        sizes_C1 = sizes_C[:, None]
        means_CD = (sums_CD / sizes_C1.clamp(min=1)).float()
        centroids_CD = torch.where(sizes_C1 > 0, means_CD, centroids_CD)
    return centroids_CD


def k_means_plus_plus(states_ND: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The first centroids [C, D] (Arthur and Vassilvitskii, k-means++, 2007): states drawn one after the other, each
    with a probability proportional to its squared distance from the nearest one drawn before."""
    num_states = len(states_ND)
    first = torch.randint(num_states, (1,), generator=generator)
    chosen = [int(first)]
    distances_N = torch.full((num_states,), torch.inf, dtype=torch.float64)
    for _ in range(count - 1):
        last_D = states_ND[chosen[-1]]
        differences_ND = (states_ND - last_D).double()
        distances_to_last_N = differences_ND.square().sum(-1)
        distances_N = torch.minimum(distances_N, distances_to_last_N)
        probabilities_N = distances_N
        if distances_N.sum() <= 0:
            # Fewer different states than clusters: every state is a centroid already, so any will do.
            probabilities_N = torch.ones_like(distances_N)
        drawn = torch.multinomial(probabilities_N, 1, generator=generator)
        chosen.append(int(drawn))
    return states_ND[chosen].clone()


def sample_states(states: Iterator[Tensor], config: UnitsDistillConfig, seed: int, teacher: str) -> Tensor:
    """A seeded sample [N, D], on the CPU, of the states of valid frames; ConfigError, which begins with `teacher`, when
    they are fewer than units."""
    batches: list[Tensor] = []
    for batch_ND in states:
        batches.append(batch_ND.float().cpu())
    all_ND = torch.cat(batches)
    if len(all_ND) < config.count:
        raise ConfigError(
            f"{teacher} has {len(all_ND)} frames in the first {config.steps} steps, too few for {config.count} units. "
            "Raise distill.units.steps or lower distill.units.count."
        )
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(all_ND), generator=generator)
    sample_N = shuffled[: config.frames]
    # In the order of reading, so that a sample of all frames is the frames themselves.
    return all_ND[sample_N.sort().values]


def write_units(path: Path, centroids_CD: Tensor) -> None:
    """Write centroids whole or not at all."""
    with replacing(path) as temporary:
        save_file({CENTROIDS: centroids_CD}, temporary)


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
