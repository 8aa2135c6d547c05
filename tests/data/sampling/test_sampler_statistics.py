"""What a sampler does with a corpus, measured on one epoch."""

import numpy as np
import pytest

from data.sampling.sampler import BatchesConfig, BatchSampler
from data.sampling.statistics import describe_excluded, measure_sampling

RATE_HZ = 1000


def make_sampler(durations_s, num_shards, batches):
    count = len(durations_s)
    return BatchSampler(
        shard=np.arange(count, dtype=np.int32) * num_shards // count,
        samples=np.round(np.array(durations_s) * RATE_HZ).astype(np.int64),
        tokens=np.ones(count, np.int32),
        min_frames=np.full(count, 3, np.int32),
        batches=batches,
        seed=0,
        sample_rate_hz=RATE_HZ,
        encoder_frames=lambda samples: samples // 40,
    )


def random_durations_s(count):
    return np.random.default_rng(5).gamma(4.0, 1.0, count) + 0.5


def test_neighbours_near_those_of_a_perfect_shuffle_as_pools_grow():
    def measure(pool_shards):
        batches = BatchesConfig(lanes=2, seconds=30, pool_shards=pool_shards)
        return measure_sampling(make_sampler(random_durations_s(4000), 100, batches))

    one = measure(1)
    ten = measure(10)
    hundred = measure(100)
    assert one.neighbours_expected == ten.neighbours_expected == pytest.approx(39 / 3999)
    assert one.neighbours_observed > 0.95
    # Among ten shards one neighbour in ten is of the same shard.
    assert ten.neighbours_observed == pytest.approx(0.1, abs=0.02)
    assert hundred.neighbours_observed == pytest.approx(hundred.neighbours_expected, abs=0.005)


def test_padding_is_the_share_of_audio_that_was_added():
    # Two lanes of one micro-batch each: 4 and 3 s, padded to 8 s; 2 and 1 s, padded to 4 s.
    statistics = measure_sampling(make_sampler([4.0, 3.0, 2.0, 1.0], 1, BatchesConfig(lanes=2, seconds=10)))
    assert (statistics.steps_per_epoch, statistics.utterances_per_micro_batch) == (1, 2.0)
    assert statistics.padding == pytest.approx(1 - 10 / 12)


def test_idle_lanes_and_excluded_utterances_are_counted():
    sampler = make_sampler([2.0, 3.0, 40.0, 50.0, 0.01], 1, BatchesConfig(lanes=5))
    statistics = measure_sampling(sampler)
    assert (statistics.utterances, statistics.empty_micro_batches) == (2, 3)
    assert statistics.excluded == {"too long": 2, "too short": 1, "infeasible for CTC": 0}
    assert describe_excluded(sampler) == "3 of 5 utterances are excluded: 2 too long, 1 too short."
    assert describe_excluded(make_sampler([2.0, 3.0], 1, BatchesConfig())) == "0 of 2 utterances are excluded."
