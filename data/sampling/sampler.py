"""Which utterances every lane reads at every step: a pure function of index, seed and step.

A *lane* is a virtual data-parallel slot. Step `s` takes micro-batch `s` of every lane, and process `r` of
`W` runs the lanes `r, r + W, ...`, so the sampler knows nothing of processes and a run may change their number
at any step.

What it promises: every utterance that is not excluded is read exactly once per epoch; a micro-batch stays
within its budget (one utterance above the budget is a batch of one); no step is empty; every epoch has the
same number of steps, so a step's epoch is found by a division; the answer for a step does not depend on earlier
calls. All arithmetic that decides is in integers or in single IEEE operations, and no order comes from
a generator whose stream may change with a library's release, so that every machine computes the same batches.

One epoch is made like this. The shards are shuffled and taken a pool at a time; a pool is sorted by length
after augmentation, cut into micro-batches, and their order is shuffled. The sequence of all micro-batches is
cut into equal parts, one for each lane. So a lane reads few shards at a time, whole pools except at its two
ends, and all lanes end together.

The number of micro-batches depends on the speeds and pools that an epoch draws. So the first epoch is cut, a
few slots are added, and every epoch is fitted into these slots. An epoch with fewer micro-batches halves the
fullest until each slot is taken: no lane idles. One with more, which is rare, takes speeds and pools of the
first epoch, known to fit, and shuffles their micro-batches anew. Only where utterances are fewer than slots do
some lanes get an empty micro-batch, at the last step. The price is one layout when the sampler is opened, and
steps within a few per cent of the fewest possible; in return no epoch has to be laid out to find a later one.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, model_validator

from data.errors import DataError
from data.seeds import derive_seed

Integers = npt.NDArray[np.int64]
AnyIntegers = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int32]
"""Positions of utterances in the index; int32, as there may be tens of millions."""

# Utterances are sorted as if they were up to this share longer, so that epochs do not repeat the same batches.
LENGTH_JITTER = 0.05
# The loader reads ahead into the next epoch while the trainer still asks for totals of this one.
CACHED_EPOCHS = 2
# The reason of an utterance whose text CTC cannot write in its frames.
INFEASIBLE = "infeasible for CTC"


class BatchesConfig(BaseModel, frozen=True, extra="forbid"):
    """How utterances become micro-batches. The process count is not part of it, on purpose."""

    lanes: int = Field(
        default=8,
        ge=1,
        le=65_536,
        description="micro-batches per step; any number of processes dividing it can run",
    )
    seconds: float = Field(
        default=60.0,
        gt=0,
        le=1e6,
        description="budget of a micro-batch: padded seconds after augmentation, attention included",
    )
    pool_shards: int = Field(
        default=8,
        ge=1,
        le=10**6,
        description="shards whose utterances are mixed and bucketed together",
    )
    attention_s: float = Field(
        default=30.0,
        ge=0.001,
        le=1e9,
        description="an utterance of T seconds costs T * (1 + T / attention_s) seconds of the budget",
    )
    max_utterance_s: float = Field(
        default=30.0,
        gt=0,
        le=21_600,
        description="longer utterances are excluded, in seconds",
    )
    min_utterance_s: float = Field(
        default=0.1,
        ge=0,
        le=21_600,
        description="shorter utterances are excluded, in seconds",
    )

    @model_validator(mode="after")
    def _check_range(self) -> BatchesConfig:
        if self.min_utterance_s >= self.max_utterance_s:
            raise ValueError(
                f"min_utterance_s is {self.min_utterance_s} and max_utterance_s {self.max_utterance_s}: no "
                "utterance fits between them. Lower the first or raise the second."
            )
        return self

    def capacity(self, samples: Integers, sample_rate_hz: int) -> Integers:
        """How many utterances of so many samples fit into a micro-batch, one at least."""
        budget = round(self.seconds * sample_rate_hz)
        # T * (1 + T / attention_s) in whole samples: integers round alike on every machine.
        cost = samples + samples * samples // round(self.attention_s * sample_rate_hz)
        return np.maximum(1, budget // cost)

    def lanes_of(self, rank: int, world_size: int) -> tuple[int, ...]:
        """The lanes that process `rank` of `world_size` runs. ValueError when `world_size` does not divide `lanes`."""
        if self.lanes % world_size:
            divisors = []
            for number in range(1, self.lanes + 1):
                if self.lanes % number == 0:
                    divisors.append(str(number))
            raise ValueError(
                f"batches.lanes is {self.lanes}, which {world_size} processes do not divide. Run with one of "
                f"{', '.join(divisors)} processes, or set batches.lanes to a multiple of {world_size}."
            )
        return tuple(range(rank, self.lanes, world_size))


@dataclass(frozen=True)
class BatchSpec:
    """What one lane contributes to one step; empty (B = 0) where utterances are fewer than lanes."""

    step: int
    epoch: int
    lane: int
    utterances: Integers  # [B] positions in the index, longest first
    speeds: npt.NDArray[np.float32]  # [B] factors of the speed perturbation
    samples: Integers  # [B] length after the speed perturbation


@dataclass(frozen=True)
class Totals:
    """Sums over all lanes of one step: the denominators of the loss.

    Utterances that turn out broken when they are read stay counted: the sampler reads no audio.
    """

    utterances: int
    tokens: int
    frames: int  # encoder frames after the speed perturbation
    masked: int = 0  # frames whose content is to be predicted, 0 without masked prediction


@dataclass(frozen=True)
class _CutEpoch:
    """The utterances of an epoch cut into micro-batches, pool after pool, before anything is shuffled."""

    utterances: Positions  # within each pool about longest first
    starts: Integers  # where each micro-batch starts in `utterances`
    pool_starts: Integers  # where each pool starts in `utterances`, and the end


@dataclass(frozen=True)
class _Epoch:
    """Layout of one epoch. Micro-batch k holds `utterances[starts[k]:stops[k]]`; they lie lane after lane."""

    source_epoch: int  # the epoch whose speeds and pools it uses: itself, or the first one
    utterances: Positions
    starts: Integers
    stops: Integers
    lane_starts: Integers  # [lanes + 1] first micro-batch of each lane


class BatchSampler:
    """The batches of a run.

    All arrays have one entry per utterance, in the order of the index: `shard` (number of its shard),
    `samples` (at `sample_rate_hz`), `tokens` (length of its transcript) and `min_frames` (the shortest
    output CTC can align: tokens plus adjacent repeats). `encoder_frames` maps samples to encoder frames,
    for arrays. `transcribed` is True for utterances with a transcript, and the others are excluded; without it all are
    used. `excluded` holds the excluded utterances by reason; `steps_per_epoch` is the same for every epoch.

    DataError when no utterance is left to train on.
    """

    def __init__(
        self,
        shard: AnyIntegers,
        samples: AnyIntegers,
        tokens: AnyIntegers,
        min_frames: AnyIntegers,
        batches: BatchesConfig,
        seed: int,
        sample_rate_hz: int,
        speeds: Sequence[float] = (1.0,),
        *,
        encoder_frames: Callable[[Integers], Integers],
        transcribed: npt.NDArray[np.bool_] | None = None,
    ):
        assert len(shard) == len(samples) == len(tokens) == len(min_frames) < 2**31
        self.batches = batches
        self.seed = seed
        self.sample_rate_hz = sample_rate_hz
        self.speeds = np.asarray(speeds, dtype=np.float64)
        self.shard = np.asarray(shard)
        # int64, because `capacity` squares them.
        self._samples = np.asarray(samples, dtype=np.int64)
        self._tokens = np.asarray(tokens)
        self._encoder_frames = encoder_frames

        self.excluded = self._exclude(np.asarray(min_frames), transcribed)
        usable = np.ones(len(self._samples), dtype=bool)
        for utterances in self.excluded.values():
            usable[utterances] = False

        # Shard after shard, so that a pool is a concatenation of slices.
        utterances = np.flatnonzero(usable).astype(np.int32)
        by_shard = np.argsort(self.shard[utterances], kind="stable")
        self._utterances = utterances[by_shard]
        _, shard_starts = np.unique(self.shard[self._utterances], return_index=True)
        self._shard_starts = np.append(shard_starts, len(self._utterances))

        first = self._cut_epoch(0)
        num_batches = len(first.starts)
        # An epoch's micro-batches vary like the square root of their number; half of it is twice that spread.
        slots = num_batches + math.isqrt(num_batches) // 2
        # A slot holds at least one utterance.
        slots = min(slots, len(self._utterances))
        self.steps_per_epoch = math.ceil(slots / batches.lanes)
        self._epochs = OrderedDict({0: self._fit(0, 0, first)})

    @property
    def shard_sizes(self) -> Integers:
        """Utterances of each shard that are not excluded; shards without any are not listed."""
        return np.diff(self._shard_starts)

    def position(self, step: int) -> tuple[int, int]:
        """Where a step lies: (epoch, step within that epoch)."""
        return divmod(step, self.steps_per_epoch)

    def micro_batch(self, step: int, lane: int) -> BatchSpec:
        """What `lane` reads at `step`."""
        epoch, step_in_epoch = self.position(step)
        layout = self._epoch(epoch)
        utterances = self._slot(layout, step_in_epoch, lane)
        speeds = self._speeds(layout.source_epoch, utterances)
        # Lengths come from the fp64 speeds: the same that the batch was cut with.
        return BatchSpec(
            step=step,
            epoch=epoch,
            lane=lane,
            utterances=utterances,
            speeds=speeds.astype(np.float32),
            samples=change_length(self._samples[utterances], speeds),
        )

    def totals(self, step: int) -> Totals:
        """Utterances, tokens and encoder frames of a step, over all lanes."""
        epoch, step_in_epoch = self.position(step)
        layout = self._epoch(epoch)
        utterances_of_lanes = []
        for lane in range(self.batches.lanes):
            utterances_of_lanes.append(self._slot(layout, step_in_epoch, lane))
        utterances = np.concatenate(utterances_of_lanes)
        speeds = self._speeds(layout.source_epoch, utterances)
        samples = change_length(self._samples[utterances], speeds)
        return Totals(
            utterances=len(utterances),
            tokens=int(self._tokens[utterances].sum()),
            frames=int(self._encoder_frames(samples).sum()),
        )

    def _slot(self, layout: _Epoch, step_in_epoch: int, lane: int) -> Integers:
        """The utterances of a lane at a step."""
        batch = int(layout.lane_starts[lane]) + step_in_epoch
        # Where utterances are fewer than slots, some lanes have nothing at the last step.
        if batch >= layout.lane_starts[lane + 1]:
            return np.empty(0, dtype=np.int64)
        start = layout.starts[batch]
        stop = layout.stops[batch]
        return layout.utterances[start:stop].astype(np.int64)

    def _exclude(self, min_frames: AnyIntegers, transcribed: npt.NDArray[np.bool_] | None) -> dict[str, Integers]:
        excluded = exclude(
            self._samples,
            min_frames,
            self.batches,
            self.sample_rate_hz,
            self.speeds,
            self._encoder_frames,
            transcribed,
        )
        if sum(map(len, excluded.values())) == len(self._samples):
            counts = ", ".join(f"{len(utterances)} {reason}" for reason, utterances in excluded.items())
            raise DataError(
                f"No utterance is left to train on: of {len(self._samples)} in the index, {counts}. Look at the "
                f"corpus, at batches.min_utterance_s ({self.batches.min_utterance_s}) and at "
                f"batches.max_utterance_s ({self.batches.max_utterance_s})."
            )
        return excluded

    def _epoch(self, epoch: int) -> _Epoch:
        """The layout of an epoch, from the cache of the last few where it is there."""
        if epoch not in self._epochs:
            cut = self._cut_epoch(epoch)
            source_epoch = epoch
            # Too many micro-batches for the slots: those of the first epoch are known to fit.
            if len(cut.starts) > self.steps_per_epoch * self.batches.lanes:
                source_epoch = 0
                cut = self._cut_epoch(source_epoch)
            self._epochs[epoch] = self._fit(epoch, source_epoch, cut)
            while len(self._epochs) > CACHED_EPOCHS:
                self._epochs.popitem(last=False)
        self._epochs.move_to_end(epoch)
        return self._epochs[epoch]

    def _cut_epoch(self, epoch: int) -> _CutEpoch:
        """Shuffle the shards of an epoch into pools, and cut each pool into micro-batches."""
        shards_seed = derive_seed(self.seed, "shards", epoch)
        jitter_seed = derive_seed(self.seed, "jitter", epoch)
        num_shards = len(self._shard_starts) - 1
        num_pools = math.ceil(num_shards / self.batches.pool_shards)
        shuffled = np.argsort(random_bits(shards_seed, np.arange(num_shards)))

        order = np.empty_like(self._utterances)
        starts: list[Integers] = []
        pool_starts = [0]
        for shards in np.array_split(shuffled, num_pools):
            utterances_of_shards = []
            for shard in shards:
                first = self._shard_starts[shard]
                end = self._shard_starts[shard + 1]
                utterances_of_shards.append(self._utterances[first:end])
            pool = np.concatenate(utterances_of_shards)
            # The budget is one of audio as the model gets it, so lengths are those after the speed perturbation.
            samples = change_length(self._samples[pool], self._speeds(epoch, pool))
            jitter = 1.0 + LENGTH_JITTER * _uniform(jitter_seed, pool)
            jittered = (samples * jitter).astype(np.int64)
            longest_first = np.argsort(-jittered, kind="stable")

            # With jitter the first of a batch need not be its longest, so the budget counts the longest to come.
            ordered = samples[longest_first]
            longest = np.maximum.accumulate(ordered[::-1])[::-1]
            capacities = self.batches.capacity(longest, self.sample_rate_hz)
            bounds = cut_batches(capacities)

            start = pool_starts[-1]
            stop = start + len(pool)
            order[start:stop] = pool[longest_first]
            starts.append(start + bounds[:-1])
            pool_starts.append(stop)
        return _CutEpoch(order, np.concatenate(starts), np.array(pool_starts))

    def _fit(self, epoch: int, source_epoch: int, cut: _CutEpoch) -> _Epoch:
        """Halve the fullest micro-batches until the slots are taken, shuffle within pools, share out to lanes."""
        num_utterances = len(cut.utterances)
        slots = min(self.steps_per_epoch * self.batches.lanes, num_utterances)
        starts = cut.starts
        while len(starts) < slots:
            sizes = np.diff(starts, append=num_utterances)
            fullest = np.argsort(-sizes, kind="stable")[: slots - len(starts)]
            # A batch of one cannot be halved; another round then halves the halves of the others.
            fullest = fullest[sizes[fullest] > 1]
            middles = starts[fullest] + sizes[fullest] // 2
            starts = np.sort(np.append(starts, middles))
        stops = np.append(starts[1:], num_utterances)

        pools = np.searchsorted(cut.pool_starts, starts, side="right")
        batches_seed = derive_seed(self.seed, "batches", epoch)
        # The last key sorts first: by pool, and at random within it.
        shuffled = np.lexsort((random_bits(batches_seed, starts), pools))
        # Equal to within one micro-batch, so that all lanes end an epoch together.
        num_lanes = self.batches.lanes
        lane_starts = np.arange(num_lanes + 1) * len(starts) // num_lanes
        return _Epoch(
            source_epoch=source_epoch,
            utterances=cut.utterances,
            starts=starts[shuffled],
            stops=stops[shuffled],
            lane_starts=lane_starts,
        )

    def _speeds(self, epoch: int, utterances: AnyIntegers) -> Floats:
        """The speed that each utterance draws in an epoch."""
        if len(self.speeds) == 1:
            return np.full(len(utterances), self.speeds[0])
        draws = _uniform(derive_seed(self.seed, "speed", epoch), utterances)
        choices = (draws * len(self.speeds)).astype(np.int64)
        return self.speeds[choices]


def exclude(
    samples: Integers,
    min_frames: AnyIntegers,
    batches: BatchesConfig,
    sample_rate_hz: int,
    speeds: Sequence[float] | Floats,
    encoder_frames: Callable[[Integers], Integers],
    transcribed: npt.NDArray[np.bool_] | None = None,
) -> dict[str, Integers]:
    """The positions of the utterances that no training reads, by reason; arguments are those of `BatchSampler`."""
    seconds = samples / sample_rate_hz
    # The fastest speed leaves the fewest frames: feasible at that speed is feasible at every one.
    fastest = np.full(len(samples), np.max(speeds), dtype=np.float64)
    frames = encoder_frames(change_length(samples, fastest))

    masks: dict[str, npt.NDArray[np.bool_]] = {}
    if transcribed is not None and not transcribed.all():
        masks["without a transcript"] = ~transcribed
    masks["too long"] = seconds > batches.max_utterance_s
    masks["too short"] = seconds < batches.min_utterance_s
    # An utterance without a frame has nothing to learn from, whatever its transcript.
    masks[INFEASIBLE] = frames < np.maximum(min_frames, 1)

    excluded: dict[str, Integers] = {}
    usable = np.ones(len(seconds), dtype=bool)
    for reason, mask in masks.items():
        # Each utterance is counted once, under the first reason that applies.
        excluded[reason] = np.flatnonzero(mask & usable)
        usable &= ~mask
    return excluded


def cut_batches(capacities: Integers) -> Integers:
    """Cut a sequence of utterances into batches, each as large as the utterance that begins it allows.

    `capacities` [N] are the largest sizes of a batch that begins at each position, one at least. Returns bounds
    int64 [batches + 1]: batch b holds the positions from `bounds[b]` up to `bounds[b + 1]`.
    """
    sizes = capacities.tolist()
    bounds = [0]
    position = 0
    while position < len(sizes):
        position += sizes[position]
        # The last batch may have room for more utterances than there are.
        bounds.append(min(position, len(sizes)))
    return np.array(bounds, dtype=np.int64)


def change_length(samples: Integers, speeds: Floats | float) -> Integers:
    """Samples of utterances that are played so many times as fast."""
    return np.rint(samples / speeds).astype(np.int64)


def random_bits(seed: int, positions: AnyIntegers) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood, 2014) at the given positions of the stream `seed`."""
    # Unsigned arithmetic wraps at 2**64, as the algorithm wants; position 0 is the stream's first output.
    counters = positions.astype(np.uint64) + np.uint64(1)
    bits = np.uint64(seed) + counters * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _uniform(seed: int, positions: AnyIntegers) -> Floats:
    """Float64 in [0, 1) at the given positions of the stream `seed`."""
    # A float64 holds 53 bits exactly, so the upper 53 of the 64 are used.
    high_bits = random_bits(seed, positions) >> np.uint64(11)
    return high_bits.astype(np.float64) * 2.0**-53
