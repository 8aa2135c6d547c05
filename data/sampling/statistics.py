"""What a sampler does with a corpus, measured on one epoch: steps, padding, shuffling, and what it excludes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.sampling.mixture import MixtureSampler
from data.sampling.sampler import BatchSampler, Integers


@dataclass(frozen=True)
class SamplingStatistics:
    """One epoch of a sampler. Shares are of 1.

    `padding` is silence that fills up shorter utterances, over all audio of the micro-batches. The two
    shares of neighbours say how many pairs of utterances that a lane reads one after the other come from one
    shard: `neighbours_expected` of a perfect shuffle of the whole corpus, `neighbours_observed` of this sampler.
    The nearer the two, the better the mixing; larger pools bring them nearer.
    """

    steps_per_epoch: int
    utterances: int
    utterances_per_micro_batch: float
    empty_micro_batches: int
    padding: float
    neighbours_expected: float
    neighbours_observed: float
    excluded: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_sampling(sampler: BatchSampler | MixtureSampler, epoch: int = 0) -> SamplingStatistics:
    """Walk through one epoch, lane by lane."""
    first = epoch * sampler.steps_per_epoch
    num_filled = 0
    samples = 0
    padded_samples = 0
    neighbours = 0
    neighbours_of_one_shard = 0
    for lane in range(sampler.batches.lanes):
        utterances: list[Integers] = []
        for step in range(first, first + sampler.steps_per_epoch):
            batch = sampler.micro_batch(step, lane)
            if len(batch.utterances) == 0:
                continue
            num_filled += 1
            samples += int(batch.samples.sum())
            padded_samples += len(batch.samples) * int(batch.samples.max())
            utterances.append(batch.utterances)
        if utterances:
            shards = sampler.shard[np.concatenate(utterances)]
            neighbours += len(shards) - 1
            neighbours_of_one_shard += int((shards[1:] == shards[:-1]).sum())

    # Ordered pairs within a shard, of all ordered pairs.
    sizes = sampler.shard_sizes
    count = int(sizes.sum())
    pairs_of_one_shard = int((sizes * (sizes - 1)).sum())
    num_micro_batches = sampler.steps_per_epoch * sampler.batches.lanes
    return SamplingStatistics(
        steps_per_epoch=sampler.steps_per_epoch,
        utterances=count,
        utterances_per_micro_batch=count / num_filled,
        empty_micro_batches=num_micro_batches - num_filled,
        padding=1 - samples / padded_samples,
        neighbours_expected=pairs_of_one_shard / max(1, count * (count - 1)),
        neighbours_observed=neighbours_of_one_shard / max(1, neighbours),
        excluded={reason: len(utterances) for reason, utterances in sampler.excluded.items()},
    )


def describe_excluded(sampler: BatchSampler | MixtureSampler) -> str:
    """How many utterances a sampler excludes and why, as one sentence."""
    total = 0
    reasons: list[str] = []
    for reason, utterances in sampler.excluded.items():
        if len(utterances):
            total += len(utterances)
            reasons.append(f"{len(utterances)} {reason}")

    sentence = f"{total} of {len(sampler.shard)} utterances are excluded"
    if reasons:
        sentence += f": {', '.join(reasons)}"
    return f"{sentence}."
