"""Which utterances every lane reads at every step: a pure function of index, seed and step.

A *lane* is a virtual data-parallel slot. Step `s` takes micro-batch `s` of every lane, and process `r` of
`W` runs the lanes `r, r + W, ...`, so the plan knows nothing of processes and a run may change their number
at any step.

What it promises: every utterance that is not excluded is read exactly once per epoch; a micro-batch stays
within its budget (one utterance above the budget is a batch of one); lanes that end early hand out empty
micro-batches; the answer for a step does not depend on what was asked before. All arithmetic that decides
is in integers or in single IEEE operations, and no order comes from a generator whose stream may change
with a library's release, so that every machine computes the same plan.

One epoch is made like this. Shards are dealt to lanes, heaviest first to the lightest lane. Where there are
too few for an even deal, shards are cut into slices of neighbouring utterances and the slices are dealt:
each utterance is still read once, and its bytes by one process. A lane reads its pieces in a shuffled
order, a pool at a time; a pool is sorted by length after augmentation, cut into micro-batches, and their
order is shuffled.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, model_validator

from data.errors import DataError

Integers = npt.NDArray[np.int64]

# With eight pieces for each lane the heaviest lane stays within a few per cent of the mean.
PIECES_PER_LANE = 8
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
class MicroBatch:
    """What one lane contributes to one step; empty (B = 0) when the lane has ended its epoch."""

    step: int
    epoch: int
    lane: int
    utterances: Integers  # [B] positions in the index, longest first
    speeds: npt.NDArray[np.float32]  # [B] factors of the speed perturbation
    samples: Integers  # [B] length after the speed perturbation


@dataclass(frozen=True)
class Totals:
    """Sums over all lanes of one step: the denominators of the loss.

    A plan knows nothing of utterances that turn out broken when they are read: they stay counted.
    """

    utterances: int
    tokens: int
    frames: int  # encoder frames after the speed perturbation


@dataclass(frozen=True)
class _Epoch:
    """Layout of one epoch. Batch k holds `utterances[starts[k]:stops[k]]`; batches lie lane after lane."""

    utterances: npt.NDArray[np.int32]
    starts: Integers
    stops: Integers
    lane_starts: Integers  # [lanes + 1] first batch of each lane
    totals: npt.NDArray[np.int64]  # [steps, 3] utterances, tokens, frames

    @property
    def num_steps(self) -> int:
        return len(self.totals)


class Plan:
    """The batches of a run.

    All arrays have one entry per utterance, in the order of the index: `shard` (number of its shard),
    `samples` (at `sample_rate_hz`), `tokens` (length of its transcript) and `min_frames` (the shortest
    output CTC can align: tokens plus adjacent repeats). `encoder_frames` maps samples to encoder frames,
    for arrays.

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
    ):
        assert len(shard) == len(samples) == len(tokens) == len(min_frames) < 2**31
        self.batches = batches
        self.seed = seed
        self.sample_rate_hz = sample_rate_hz
        self.speeds = np.asarray(speeds, dtype=np.float64)
        self._shard = np.asarray(shard)
        self._samples = np.asarray(samples, dtype=np.int64)
        self._tokens = np.asarray(tokens)
        self._encoder_frames = encoder_frames
        self.excluded = self._exclude(np.asarray(min_frames))
        self._utterances, self._piece_starts, self._slices = self._cut_pieces()
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._first_steps = [0]

    def steps_per_epoch(self, epoch: int) -> int:
        """Number of steps of an epoch; differs a little between epochs."""
        return self._first_step(epoch + 1) - self._first_step(epoch)

    def position(self, step: int) -> tuple[int, int]:
        """Where a step lies: (epoch, step within that epoch)."""
        epoch = max(0, len(self._first_steps) - 2)
        while self._first_step(epoch + 1) <= step:
            epoch += 1
        epoch = int(np.searchsorted(self._first_steps, step, side="right")) - 1
        return epoch, step - self._first_steps[epoch]

    def micro_batch(self, step: int, lane: int) -> MicroBatch:
        """What `lane` reads at `step`."""
        epoch, step_in_epoch = self.position(step)
        layout = self._epoch(epoch)
        batch = int(layout.lane_starts[lane]) + step_in_epoch
        utterances = np.empty(0, dtype=np.int64)
        if batch < layout.lane_starts[lane + 1]:
            utterances = layout.utterances[layout.starts[batch] : layout.stops[batch]].astype(np.int64)
        speeds = self._speeds(epoch, utterances)
        samples = _change_length(self._samples[utterances], speeds)
        return MicroBatch(step, epoch, lane, utterances, speeds.astype(np.float32), samples)

    def totals(self, step: int) -> Totals:
        """Utterances, tokens and encoder frames of a step, over all lanes."""
        epoch, step_in_epoch = self.position(step)
        return Totals(*self._epoch(epoch).totals[step_in_epoch].tolist())

    def _exclude(self, min_frames: npt.NDArray[np.integer]) -> dict[str, Integers]:
        fastest = np.full(len(self._samples), self.speeds.max())
        frames = self._encoder_frames(_change_length(self._samples, fastest))
        seconds = self._samples / self.sample_rate_hz
        excluded: dict[str, Integers] = {}
        kept = np.ones(len(seconds), dtype=bool)
        for reason, mask in (
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

    def _cut_pieces(self) -> tuple[npt.NDArray[np.int32], Integers, int]:
        """Utterances in the order of pieces, where each piece starts (and the end), slices per shard."""
        kept = np.ones(len(self._samples), dtype=bool)
        for ids in self.excluded.values():
            kept[ids] = False
        utterances = np.flatnonzero(kept).astype(np.int32)
        utterances = utterances[np.argsort(self._shard[utterances], kind="stable")]
        _, counts = np.unique(self._shard[utterances], return_counts=True)
        slices = -(-PIECES_PER_LANE * self.batches.lanes // len(counts))
        shard_starts = np.concatenate([[0], np.cumsum(counts)])
        cuts = shard_starts[:-1, None] + counts[:, None] * np.arange(slices) // slices
        return utterances, np.append(np.unique(cuts), len(utterances)), slices

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            self._epochs[epoch] = self._lay_out(epoch)
            while len(self._epochs) > CACHED_EPOCHS:
                self._epochs.popitem(last=False)
        self._epochs.move_to_end(epoch)
        return self._epochs[epoch]

    def _first_step(self, epoch: int) -> int:
        while len(self._first_steps) <= epoch:
            steps = self._epoch(len(self._first_steps) - 1).num_steps
            self._first_steps.append(self._first_steps[-1] + steps)
        return self._first_steps[epoch]

    def _speeds(self, epoch: int, utterances: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        if len(self.speeds) == 1:
            return np.full(len(utterances), self.speeds[0])
        draws = _uniform(derive_seed(self.seed, "speed", epoch), utterances)
        return self.speeds[(draws * len(self.speeds)).astype(np.int64)]

    def _cost(self, samples: Integers) -> Integers:
        return samples + samples * samples // round(self.batches.attention_s * self.sample_rate_hz)

    def _lay_out(self, epoch: int) -> _Epoch:
        speeds = self._speeds(epoch, self._utterances)
        samples = _change_length(self._samples[self._utterances], speeds)
        pieces, lanes = self._deal(epoch, samples)
        pools, pool_lanes = self._pool(lanes)
        order, pool_starts = self._sort_pools(epoch, samples, pieces, pools)
        samples = samples[order]
        starts = self._cut_batches(samples, pool_starts)
        stops = np.append(starts[1:], len(order))
        batch_pools = np.searchsorted(pool_starts, starts, side="right") - 1
        totals = self._batch_totals(order, samples, starts, stops)
        shuffled = np.lexsort((_random_bits(derive_seed(self.seed, "batches", epoch), starts), batch_pools))
        batch_lanes = pool_lanes[batch_pools]
        lane_starts = np.searchsorted(batch_lanes, np.arange(self.batches.lanes + 1))
        step_totals = _sum_over_lanes(totals[shuffled], lane_starts)
        return _Epoch(self._utterances[order], starts[shuffled], stops[shuffled], lane_starts, step_totals)

    def _deal(self, epoch: int, samples: Integers) -> tuple[Integers, Integers]:
        """Pieces in reading order, lane after lane, and the lane of each."""
        weights = np.add.reduceat(self._cost(samples), self._piece_starts[:-1])
        shuffled = np.argsort(
            _random_bits(derive_seed(self.seed, "deal", epoch), np.arange(len(weights))), kind="stable"
        )
        # Coarse classes of weight, so that pieces of about equal weight meet other lanes in other epochs.
        classes = weights * 4 * len(weights) // max(1, int(weights.sum()))
        heaviest_first = shuffled[np.argsort(-classes[shuffled], kind="stable")]
        lane_of = np.empty(len(weights), dtype=np.int64)
        lightest = [(0, lane) for lane in range(self.batches.lanes)]
        for piece in heaviest_first.tolist():
            weight, lane = lightest[0]
            lane_of[piece] = lane
            heapq.heapreplace(lightest, (weight + int(weights[piece]), lane))
        pieces = shuffled[np.argsort(lane_of[shuffled], kind="stable")]
        return pieces, lane_of[pieces]

    def _pool(self, lanes: Integers) -> tuple[Integers, Integers]:
        """The pool of each piece in reading order, and the lane of each pool."""
        position = np.arange(len(lanes)) - np.searchsorted(lanes, lanes)
        # A slice is a part of a shard: a pool holds as much audio as that number of whole shards.
        begins = position % (self.batches.pool_shards * self._slices) == 0
        return np.cumsum(begins) - 1, lanes[begins]

    def _sort_pools(
        self, epoch: int, samples: Integers, pieces: Integers, pools: Integers
    ) -> tuple[Integers, Integers]:
        """Positions of utterances pool after pool, each about longest first, and the first of each pool."""
        piece_sizes = np.diff(self._piece_starts)
        pool_of_piece = np.empty(len(pieces), dtype=np.int64)
        pool_of_piece[pieces] = pools
        pool = np.repeat(pool_of_piece, piece_sizes)
        draws = _uniform(derive_seed(self.seed, "jitter", epoch), self._utterances)
        jittered = (samples * (1.0 + LENGTH_JITTER * draws)).astype(np.int64)
        width = int(jittered.max()) + 1
        order = np.argsort(pool * width + (width - 1 - jittered), kind="stable")
        sizes = np.bincount(pool)
        return order, np.cumsum(sizes) - sizes

    def _cut_batches(self, samples: Integers, pool_starts: Integers) -> Integers:
        """Positions where micro-batches start, given lengths pool after pool."""
        pool_stops = np.append(pool_starts[1:], len(samples))
        pool_sizes = pool_stops - pool_starts
        # Longest utterance from here to the end of the pool. Earlier pools are lifted above later ones, so
        # that one running maximum from the end restarts at each pool.
        lift = np.repeat(np.arange(len(pool_starts))[::-1] * (int(samples.max()) + 1), pool_sizes)
        longest = np.maximum.accumulate((samples + lift)[::-1])[::-1] - lift
        sizes = np.maximum(1, round(self.batches.seconds * self.sample_rate_hz) // self._cost(longest))
        stops = np.minimum(np.arange(len(samples)) + sizes, np.repeat(pool_stops, pool_sizes)).data
        starts = []
        position = 0
        while position < len(samples):
            starts.append(position)
            position = stops[position]
        return np.array(starts, dtype=np.int64)

    def _batch_totals(
        self, order: Integers, samples: Integers, starts: Integers, stops: Integers
    ) -> npt.NDArray[np.int64]:
        tokens = self._tokens[self._utterances[order]].astype(np.int64)
        frames = np.asarray(self._encoder_frames(samples), dtype=np.int64)
        return np.stack([stops - starts, np.add.reduceat(tokens, starts), np.add.reduceat(frames, starts)], axis=1)


def shuffle_quality(plan: Plan, epoch: int) -> dict[str, float]:
    """Share of neighbouring utterances that come from one shard.

    `observed` counts pairs of neighbours in the order in which lanes read them; `expected` is what a
    perfect shuffle of the whole corpus would show. The nearer the two, the better the mixing; larger pools
    bring them nearer.
    """
    layout = plan._epoch(epoch)
    sizes = layout.stops - layout.starts
    # Position in `layout.utterances` of every utterance in reading order: its batch's start plus its place
    # there.
    first = np.cumsum(sizes) - sizes
    shards = plan._shard[layout.utterances[np.repeat(layout.starts - first, sizes) + np.arange(sizes.sum())]]
    batch_lanes = np.repeat(np.arange(plan.batches.lanes), np.diff(layout.lane_starts))
    lanes = np.repeat(batch_lanes, sizes)
    neighbours = lanes[1:] == lanes[:-1]
    same = neighbours & (shards[1:] == shards[:-1])
    _, counts = np.unique(shards, return_counts=True)
    expected = int((counts * (counts - 1)).sum()) / max(1, len(shards) * (len(shards) - 1))
    return {"expected": expected, "observed": int(same.sum()) / max(1, int(neighbours.sum()))}


def _change_length(samples: Integers, speeds: npt.NDArray[np.float64]) -> Integers:
    return np.rint(samples / speeds).astype(np.int64)


def _sum_over_lanes(totals: npt.NDArray[np.int64], lane_starts: Integers) -> npt.NDArray[np.int64]:
    batches_per_lane = np.diff(lane_starts)
    sums = np.zeros((int(batches_per_lane.max()), totals.shape[1]), dtype=np.int64)
    for first, count in zip(lane_starts[:-1].tolist(), batches_per_lane.tolist(), strict=True):
        sums[:count] += totals[first : first + count]
    return sums


def _random_bits(seed: int, positions: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood, 2014) at the given positions of the stream `seed`."""
    bits = np.uint64(seed) + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _uniform(seed: int, positions: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    return (_random_bits(seed, positions) >> np.uint64(11)).astype(np.float64) * 2.0**-53
