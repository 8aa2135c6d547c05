"""A teacher's units: clusters of the states of one of its layers, which a student learns to predict (Hsu et al.,
HuBERT, 2021).

They are made once, at the start of a stage, by k-means over a sample of the teacher's states in the first steps, of all
lanes. The first process makes them and writes them into the stage's folder; a stage that resumes reads them there. The
sample is written as it grows, so that a start that is cut off goes on from there.

Shapes: B batch, S frames, N frames of all utterances, C clusters, D width of the teacher.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.files import check_regular, replacing
from data.seeds import derive_seed
from launcher.errors import CheckpointError, ConfigError
from launcher.recipe.distillation import UnitsDistillConfig

CENTROIDS = "centroids"
# Distances are computed for so many frames at a time, which bounds their memory to this number times the clusters.
FRAMES_AT_ONCE = 8192
# What a start that is cut off has to do again at most.
SAVE_EVERY_S = 30.0

logger = logging.getLogger(__name__)


def nearest_units(states: Tensor, centroids_CD: Tensor) -> Tensor:
    """The cluster of each state [..., D]: that of the nearest centroid, in fp32."""
    with torch.autocast(states.device.type, enabled=False):
        # The nearest c minimises |x - c|^2 = |x|^2 - 2 x.c + |c|^2, where |x|^2 is the same for all clusters: it
        # maximises x.c - |c|^2 / 2.
        products = states.float() @ centroids_CD.T
        half_norms_C = centroids_CD.square().sum(-1) / 2
        nearness = products - half_norms_C
    return nearness.argmax(-1)


def k_means(
    states_ND: Tensor,
    count: int,
    iterations: int,
    seed: int,
    on_progress: Callable[[], None] = lambda: None,
) -> Tensor:
    """Centroids [C, D] of states: k-means++, then Lloyd's rounds until no state changes its cluster.

    A cluster that loses all its states keeps its centroid. `on_progress` is called for each first centroid, and for
    each part of a round.
    """
    generator = torch.Generator().manual_seed(seed)
    centroids_CD = k_means_plus_plus(states_ND, count, generator, on_progress)
    previous_units_N = None
    for _ in range(iterations):
        units: list[Tensor] = []
        for chunk_ND in states_ND.split(FRAMES_AT_ONCE):
            on_progress()
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


def k_means_plus_plus(
    states_ND: Tensor,
    count: int,
    generator: torch.Generator,
    on_progress: Callable[[], None] = lambda: None,
) -> Tensor:
    """The first centroids [C, D] (Arthur and Vassilvitskii, k-means++, 2007): states drawn one after the other, each
    with a probability proportional to its squared distance from the nearest one drawn before."""
    num_states = len(states_ND)
    first = torch.randint(num_states, (1,), generator=generator)
    chosen = [int(first)]
    distances_N = torch.full((num_states,), torch.inf, dtype=torch.float64)
    for _ in range(count - 1):
        on_progress()
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


class StateSample:
    """A sample of a teacher's states, drawn while they come: of any number of them it keeps `config.frames` at most.

    Each state has a random key, which depends on its seed, step, lane and frame alone, and those with the smallest keys
    are the sample. So it is the same whether it was drawn in one go or not. A sample of all states is these states,
    in the order of reading.
    """

    def __init__(self, config: UnitsDistillConfig, seed: int, path: Path):
        """Goes on with what an earlier start left at `path`; `next_step` is the first step that is not in it."""
        self.next_step = 0
        self._config = config
        self._seed = seed
        self._path = path
        self._keys_N = torch.zeros(0, dtype=torch.float64)
        self._states_ND: Tensor | None = None
        self._saved_at = time.monotonic()
        if path.is_file():
            self._read()

    def add(self, step: int, lane: int, states_ND: Tensor) -> None:
        """Draw from the states of a lane's valid frames, on any device."""
        new_ND = states_ND.float().cpu()
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "frames", step, lane))
        keys_N = torch.rand(len(new_ND), generator=generator, dtype=torch.float64)
        if self._states_ND is not None:
            new_ND = torch.cat((self._states_ND, new_ND))
            keys_N = torch.cat((self._keys_N, keys_N))
        if len(keys_N) > self._config.frames:
            smallest_N = keys_N.topk(self._config.frames, largest=False).indices.sort().values
            new_ND = new_ND[smallest_N]
            keys_N = keys_N[smallest_N]
        self._states_ND = new_ND
        self._keys_N = keys_N

    def close_step(self, step: int) -> None:
        """All lanes of a step are in; writes the sample from time to time, and after the last step."""
        self.next_step = step + 1
        is_last = self.next_step == self._config.steps
        if is_last or time.monotonic() - self._saved_at >= SAVE_EVERY_S:
            self._write()

    def states(self, teacher: str) -> Tensor:
        """The sample [N, D], on the CPU; ConfigError, which begins with `teacher`, when it is smaller than the number
        of units."""
        if self._states_ND is None or len(self._states_ND) < self._config.count:
            raise ConfigError(
                f"{teacher} has {len(self._keys_N)} frames in the first {self._config.steps} steps, too few for "
                f"{self._config.count} units. Raise distill.units.steps or lower distill.units.count."
            )
        return self._states_ND

    def _write(self) -> None:
        assert self._states_ND is not None
        tensors = {
            "states": self._states_ND,
            "keys": self._keys_N,
            "next_step": torch.tensor(self.next_step),
            "origin": self._origin(),
        }
        try:
            with replacing(self._path) as temporary:
                save_file(tensors, temporary)
        except (OSError, SafetensorError) as error:
            logger.warning("The states up to step %d were not written to %s: %s", self.next_step, self._path, error)
        self._saved_at = time.monotonic()

    def _read(self) -> None:
        try:
            check_regular(self._path)
            tensors = load_file(self._path)
            if not tensors["origin"].equal(self._origin()):
                return
            self._states_ND = tensors["states"]
            self._keys_N = tensors["keys"]
            self.next_step = int(tensors["next_step"])
        except (OSError, KeyError, SafetensorError) as error:
            logger.warning("%s cannot be read, and its states are drawn again: %s", self._path, error)
            return
        logger.info("the states of the first %d steps are those in %s", self.next_step, self._path)

    def _origin(self) -> Tensor:
        """What a sample must have been drawn by to go on with it."""
        # Seeds have 64 bits, of which an int64 holds the lower ones.
        return torch.tensor([self._seed % 2**63, self._config.frames, self._config.steps])


def sample_file(units_file: Path) -> Path:
    """Where the sample of a teacher's states grows until its units are made."""
    return units_file.with_name(f".{units_file.name}.sample")


def write_units(path: Path, centroids_CD: Tensor) -> None:
    """Write centroids whole or not at all."""
    with replacing(path) as temporary:
        save_file({CENTROIDS: centroids_CD}, temporary)


def read_units(path: Path, count: int) -> Tensor:
    """Centroids that were written before; CheckpointError when there are not `count` of them to read."""
    try:
        check_regular(path)
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
