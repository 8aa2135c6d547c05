"""Which utterances every lane reads at every step: a pure function of index, seed and step.

A *lane* is a virtual data-parallel slot. Step `s` takes micro-batch `s` of every lane, and process `r` of
`W` runs the lanes `r, r + W, ...`, so the sampler knows nothing of processes and a run may change their number
at any step.

What it promises: every utterance that is not excluded is read exactly once per epoch; a micro-batch stays
within its budget (one utterance above the budget is a batch of one); no step is empty; every epoch has the
same number of steps, so the place of a step is a division; the answer for a step does not depend on what was
asked before. All arithmetic that decides is in integers or in single IEEE operations, and no order comes from
a generator whose stream may change with a library's release, so that every machine computes the same sampler.

One epoch is made like this. The shards are shuffled and taken a pool at a time; a pool is sorted by length
after augmentation, cut into micro-batches, and their order is shuffled. The sequence of all micro-batches is
cut into equal parts, one for each lane. So a lane reads few shards at a time, whole pools but for those at
its two ends, and all lanes end together.

How many micro-batches come out depends on the speeds and the company that an epoch draws. So the first epoch
is cut, a few slots are added (half the square root of its micro-batches, twice what the number spreads), and
every epoch is fitted into these slots. One with fewer micro-batches halves the fullest until each slot is taken:
no lane idles. One with more, which is rare, takes speeds and pools of the first epoch, known to fit, and
shuffles their micro-batches anew. Only where utterances are fewer than slots do some lanes hand out an empty
micro-batch, at the last step. The price is one layout when the sampler is opened, and steps within a few per cent
of the fewest possible; what it buys is that no epoch has to be laid out to find those after it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, model_validator

from data.errors import DataError

Integers = npt.NDArray[np.int64]

# Utterances change places with others up to this share longer, so that epochs do not repeat the same batches.
LENGTH_JITTER = 0.05
# The loader reads ahead into the next epoch while the trainer still asks for totals of this one.
CACHED_EPOCHS = 2


def derive_seed(seed: int, *parts: int | str) -> int:
    """The 63-bit seed of one purpose, such as `derive_seed(seed, "dropout", step, lane)`.

    Every random number of a run comes from a generator seeded by this function, so none depends on the
    order in which others were drawn.
    """
    path = (int(seed), *(part if isinstance(part, str) else int(part) for part in parts))
    return int.from_bytes(blake2b(repr(path).encode(), digest_size=8).digest(), "big") >> 1


class BatchesConfig(BaseModel, frozen=True, extra="forbid"):
    """How utterances become micro-batches. The process count is not part of it, on purpose."""

    lanes: int = Field(
        default=8, ge=1, description="micro-batches per step; any number of processes dividing it can run"
    )
    seconds: float = Field(
        default=60.0,
        gt=0,
        description="budget of a micro-batch: padded seconds after augmentation, attention included",
    )
    pool_shards: int = Field(default=8, ge=1, description="shards whose utterances are mixed and bucketed together")
    attention_s: float = Field(
        default=30.0,
        gt=0,
        description="an utterance of T seconds costs T * (1 + T / attention_s) seconds of the budget",
    )
    max_utterance_s: float = Field(default=30.0, gt=0, description="longer utterances are excluded, in seconds")
    min_utterance_s: float = Field(default=0.1, ge=0, description="shorter utterances are excluded, in seconds")

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
        cost = samples + samples * samples // round(self.attention_s * sample_rate_hz)
        return np.maximum(1, round(self.seconds * sample_rate_hz) // cost)

    def lanes_of(self, rank: int, world: int) -> tuple[int, ...]:
        """The lanes that process `rank` of `world` runs. ValueError when `world` does not divide `lanes`."""
        if self.lanes % world:
            divisors = [number for number in range(1, self.lanes + 1) if self.lanes % number == 0]
            raise ValueError(
                f"batches.lanes is {self.lanes}, which {world} processes do not divide. Run with one of "
                f"{', '.join(map(str, divisors))} processes, or set batches.lanes to a multiple of {world}."
            )
        return tuple(range(rank, self.lanes, world))


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

    A sampler knows nothing of utterances that turn out broken when they are read: they stay counted.
    """

    utterances: int
    tokens: int
    frames: int  # encoder frames after the speed perturbation
    masked: int = 0  # of them those whose content is to be predicted, where any is masked


@dataclass(frozen=True)
class _Epoch:
    """Layout of one epoch. Micro-batch k holds `utterances[starts[k]:stops[k]]`; they lie lane after lane."""

    draw: int  # the epoch whose speeds and pools it has: itself, or the first one
    utterances: npt.NDArray[np.int32]
    starts: Integers
    stops: Integers
    lane_starts: Integers  # [lanes + 1] first micro-batch of each lane


class BatchSampler:
    """The batches of a run.

    All arrays have one entry per utterance, in the order of the index: `shard` (number of its shard),
    `samples` (at `sample_rate_hz`), `tokens` (length of its transcript) and `min_frames` (the shortest
    output CTC can align: tokens plus adjacent repeats). `encoder_frames` maps samples to encoder frames,
    for arrays. `transcribed` tells utterances with a transcript from those without, which are left out; none: all are
    used. `excluded` holds the utterances that are left out, by reason; `steps_per_epoch` is the same for every epoch.

    DataError when no utterance is left to train on.
    """

    def __init__(
        self,
        shard: npt.NDArray[np.integer],
        samples: npt.NDArray[np.integer],
        tokens: npt.NDArray[np.integer],
        min_frames: npt.NDArray[np.integer],
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
        self._samples = np.asarray(samples, dtype=np.int64)
        self._tokens = np.asarray(tokens)
        self._encoder_frames = encoder_frames
        self.excluded = self._exclude(np.asarray(min_frames), transcribed)
        self._utterances, self._shard_starts = self._group_by_shard()
        first = self._cut_epoch(0)
        slots = min(_slots(len(first[1])), len(self._utterances))
        self.steps_per_epoch = -(-slots // batches.lanes)
        self._epochs = OrderedDict({0: self._fit(0, 0, *first)})

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
        speeds = self._speeds(layout.draw, utterances)
        samples = change_length(self._samples[utterances], speeds)
        return BatchSpec(step, epoch, lane, utterances, speeds.astype(np.float32), samples)

    def totals(self, step: int) -> Totals:
        """Utterances, tokens and encoder frames of a step, over all lanes."""
        epoch, step_in_epoch = self.position(step)
        layout = self._epoch(epoch)
        lanes = [self._slot(layout, step_in_epoch, lane) for lane in range(self.batches.lanes)]
        utterances = np.concatenate(lanes)
        samples = change_length(self._samples[utterances], self._speeds(layout.draw, utterances))
        frames = int(self._encoder_frames(samples).sum())
        return Totals(len(utterances), int(self._tokens[utterances].sum()), frames)

    def _slot(self, layout: _Epoch, step_in_epoch: int, lane: int) -> Integers:
        """The utterances of a lane at a step."""
        batch = int(layout.lane_starts[lane]) + step_in_epoch
        if batch >= layout.lane_starts[lane + 1]:
            return np.empty(0, dtype=np.int64)
        return layout.utterances[layout.starts[batch] : layout.stops[batch]].astype(np.int64)

    def _exclude(
        self, min_frames: npt.NDArray[np.integer], transcribed: npt.NDArray[np.bool_] | None
    ) -> dict[str, Integers]:
        fastest = np.full(len(self._samples), self.speeds.max())
        frames = self._encoder_frames(change_length(self._samples, fastest))
        seconds = self._samples / self.sample_rate_hz
        excluded: dict[str, Integers] = {}
        kept = np.ones(len(seconds), dtype=bool)
        unlabelled = [] if transcribed is None or transcribed.all() else [("without a transcript", ~transcribed)]
        for reason, mask in (
            *unlabelled,
            ("too long", seconds > self.batches.max_utterance_s),
            ("too short", seconds < self.batches.min_utterance_s),
            # An utterance without a frame has nothing to learn from, whatever its transcript.
            ("infeasible for CTC", frames < np.maximum(min_frames, 1)),
        ):
            excluded[reason] = np.flatnonzero(mask & kept)
            kept &= ~mask
        if not kept.any():
            counts = ", ".join(f"{len(ids)} {reason}" for reason, ids in excluded.items())
            raise DataError(
                f"No utterance is left to train on: of {len(kept)} in the index, {counts}. Look at the "
                f"corpus, at batches.min_utterance_s ({self.batches.min_utterance_s}) and at "
                f"batches.max_utterance_s ({self.batches.max_utterance_s})."
            )
        return excluded

    def _group_by_shard(self) -> tuple[npt.NDArray[np.int32], Integers]:
        """The utterances that are not excluded, shard after shard, and where each shard starts (and the end)."""
        kept = np.ones(len(self._samples), dtype=bool)
        for ids in self.excluded.values():
            kept[ids] = False
        utterances = np.flatnonzero(kept).astype(np.int32)
        utterances = utterances[np.argsort(self.shard[utterances], kind="stable")]
        _, starts = np.unique(self.shard[utterances], return_index=True)
        return utterances, np.append(starts, len(utterances))

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            self._epochs[epoch] = self._lay_out(epoch)
            while len(self._epochs) > CACHED_EPOCHS:
                self._epochs.popitem(last=False)
        self._epochs.move_to_end(epoch)
        return self._epochs[epoch]

    def _lay_out(self, epoch: int) -> _Epoch:
        cut = self._cut_epoch(epoch)
        if len(cut[1]) <= self.steps_per_epoch * self.batches.lanes:
            return self._fit(epoch, epoch, *cut)
        return self._fit(epoch, 0, *self._cut_epoch(0))

    def _cut_epoch(self, draw: int) -> tuple[npt.NDArray[np.int32], Integers, Integers]:
        """Utterances pool after pool, each about longest first; where micro-batches and where pools start."""
        num_shards = len(self._shard_starts) - 1
        shuffled = np.argsort(_random_bits(derive_seed(self.seed, "shards", draw), np.arange(num_shards)))
        order, starts, pool_starts = np.empty_like(self._utterances), [], [0]
        for pool in np.array_split(shuffled, -(-num_shards // self.batches.pool_shards)):
            shards = [self._utterances[self._shard_starts[one] : self._shard_starts[one + 1]] for one in pool]
            utterances, cuts = self._cut_pool(draw, np.concatenate(shards))
            first = pool_starts[-1]
            order[first : first + len(utterances)] = utterances
            starts.append(cuts + first)
            pool_starts.append(first + len(utterances))
        return order, np.concatenate(starts), np.array(pool_starts)

    def _cut_pool(self, draw: int, utterances: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], Integers]:
        """A pool about longest first, and where its micro-batches start."""
        samples = change_length(self._samples[utterances], self._speeds(draw, utterances))
        longer = 1.0 + LENGTH_JITTER * _uniform(derive_seed(self.seed, "jitter", draw), utterances)
        order = np.argsort(-(samples * longer).astype(np.int64), kind="stable")
        longest = np.maximum.accumulate(samples[order][::-1])[::-1]
        sizes = self.batches.capacity(longest, self.sample_rate_hz).tolist()
        starts, position = [], 0
        while position < len(sizes):
            starts.append(position)
            position += sizes[position]
        return utterances[order], np.array(starts, dtype=np.int64)

    def _fit(
        self, epoch: int, draw: int, utterances: npt.NDArray[np.int32], starts: Integers, pool_starts: Integers
    ) -> _Epoch:
        """Halve the fullest micro-batches until the slots are taken, shuffle within pools, share out to lanes."""
        slots = min(self.steps_per_epoch * self.batches.lanes, len(utterances))
        while len(starts) < slots:
            sizes = np.diff(starts, append=len(utterances))
            fullest = np.argsort(-sizes, kind="stable")[: slots - len(starts)]
            fullest = fullest[sizes[fullest] > 1]
            starts = np.sort(np.append(starts, starts[fullest] + sizes[fullest] // 2))
        stops = np.append(starts[1:], len(utterances))
        pools = np.searchsorted(pool_starts, starts, side="right")
        shuffled = np.lexsort((_random_bits(derive_seed(self.seed, "batches", epoch), starts), pools))
        lane_starts = np.arange(self.batches.lanes + 1) * len(starts) // self.batches.lanes
        return _Epoch(draw, utterances, starts[shuffled], stops[shuffled], lane_starts)

    def _speeds(self, draw: int, utterances: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        if len(self.speeds) == 1:
            return np.full(len(utterances), self.speeds[0])
        draws = _uniform(derive_seed(self.seed, "speed", draw), utterances)
        return self.speeds[(draws * len(self.speeds)).astype(np.int64)]


def _slots(micro_batches: int) -> int:
    """Slots for epochs of about so many micro-batches, whose number spreads like its square root."""
    return micro_batches + math.isqrt(micro_batches) // 2


def change_length(samples: Integers, speeds: npt.NDArray[np.float64] | float) -> Integers:
    """Samples of utterances that are played so many times as fast."""
    return np.rint(samples / speeds).astype(np.int64)


def _random_bits(seed: int, positions: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood, 2014) at the given positions of the stream `seed`."""
    bits = np.uint64(seed) + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _uniform(seed: int, positions: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    return (_random_bits(seed, positions) >> np.uint64(11)).astype(np.float64) * 2.0**-53
