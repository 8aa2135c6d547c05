"""The sampler of a run: what is read, when and by which lane."""

import time
from collections import Counter
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.sampling.sampler import BatchesConfig, BatchSampler, cut_batches
from data.seeds import derive_seed

RATE_HZ = 1000
SPEEDS = (0.9, 1.0, 1.1)


def encoder_frames(samples):
    return samples // 40


def make_sampler(durations_s, num_shards, batches, *, seed=0, speeds=SPEEDS, min_frames=3, transcribed=None):
    count = len(durations_s)
    return BatchSampler(
        shard=np.arange(count, dtype=np.int32) * num_shards // count,
        samples=np.round(np.array(durations_s) * RATE_HZ).astype(np.int64),
        tokens=np.arange(count, dtype=np.int32) % 7,
        min_frames=np.full(count, min_frames, np.int32),
        batches=batches,
        seed=seed,
        sample_rate_hz=RATE_HZ,
        speeds=speeds,
        encoder_frames=encoder_frames,
        transcribed=transcribed,
    )


def random_durations_s(count):
    return np.random.default_rng(5).gamma(4.0, 1.0, count) + 0.5


@st.composite
def sampler_factories(draw):
    """Makes the same sampler over a random corpus as often as it is called."""
    durations_s = draw(st.lists(st.floats(0.05, 12.0), max_size=120))
    num_shards = draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**40))
    batches = BatchesConfig(
        lanes=draw(st.integers(1, 6)),
        seconds=draw(st.floats(1.0, 60.0)),
        pool_shards=draw(st.integers(1, 5)),
        attention_s=draw(st.floats(5.0, 100.0)),
    )
    # One that can be used, and one each that is too short and infeasible for CTC.
    return partial(make_sampler, [5.0, 0.05, 0.2, *durations_s], num_shards, batches, seed=seed, min_frames=8)


def epoch_of(sampler, epoch):
    """Every micro-batch of an epoch: one list of lanes per step."""
    first = epoch * sampler.steps_per_epoch
    steps = []
    for step in range(first, first + sampler.steps_per_epoch):
        steps.append([sampler.micro_batch(step, lane) for lane in range(sampler.batches.lanes)])
    return steps


def batches_of(sampler, epoch):
    return [batch for step in epoch_of(sampler, epoch) for batch in step]


def content(batch):
    return {name: np.asarray(value).tolist() for name, value in vars(batch).items()}


# --- what every sampler promises -------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(sampler_factories(), st.integers(0, 2))
def test_every_utterance_is_read_exactly_once_per_epoch(factory, epoch):
    sampler = factory()
    read = [utterance for batch in batches_of(sampler, epoch) for utterance in batch.utterances.tolist()]
    excluded = [utterance for ids in sampler.excluded.values() for utterance in ids.tolist()]
    assert len(excluded) >= 2
    assert sorted(read + excluded) == list(range(len(factory.args[0])))


@settings(max_examples=60, deadline=None)
@given(sampler_factories())
def test_a_micro_batch_stays_within_its_budget_unless_it_is_a_single_utterance(factory):
    sampler = factory()
    for batch in batches_of(sampler, 0):
        size = len(batch.utterances)
        if size > 1:
            longest_s = batch.samples.max() / RATE_HZ
            cost_s = size * longest_s * (1 + longest_s / sampler.batches.attention_s)
            # The sampler counts whole samples: each cost loses less than one, the budget and attention_s half
            # of one.
            assert cost_s <= sampler.batches.seconds * (1 + 1e-4) + (size + 1) / RATE_HZ


@given(st.lists(st.integers(1, 9)))
def test_a_batch_is_as_large_as_its_first_utterance_allows_and_the_last_one_takes_what_is_left(capacities):
    """bounds[b + 1] == min(bounds[b] + capacities[bounds[b]], N), from 0 to N."""
    bounds = cut_batches(np.array(capacities, dtype=np.int64)).tolist()
    assert bounds[0] == 0
    assert bounds[-1] == len(capacities)
    for start, stop in pairwise(bounds):
        assert stop == min(start + capacities[start], len(capacities))


@settings(max_examples=40, deadline=None)
@given(sampler_factories(), st.data())
def test_a_fresh_sampler_answers_for_any_step_like_one_that_walked_there(factory, data):
    walked = factory()
    steps = [step for epoch in range(3) for step in epoch_of(walked, epoch)]
    step = data.draw(st.integers(0, len(steps) - 1))
    fresh = factory()
    answers = [fresh.micro_batch(step, lane) for lane in range(fresh.batches.lanes)]
    assert list(map(content, answers)) == list(map(content, steps[step]))


@settings(max_examples=40, deadline=None)
@given(sampler_factories())
def test_the_totals_of_a_step_are_the_sums_over_its_lanes_and_never_empty(factory):
    sampler = factory()
    for step, lanes in enumerate(epoch_of(sampler, 0)):
        utterances = np.concatenate([batch.utterances for batch in lanes])
        frames = encoder_frames(np.concatenate([batch.samples for batch in lanes]))
        totals = sampler.totals(step)
        assert (totals.utterances, totals.tokens) == (len(utterances), (utterances % 7).sum())
        assert totals.frames == frames.sum()
        assert totals.utterances > 0


@settings(max_examples=40, deadline=None)
@given(sampler_factories(), st.integers(0, 3))
def test_position_is_the_epoch_and_the_step_within_it(factory, epoch):
    sampler = factory()
    first = epoch * sampler.steps_per_epoch
    last = first + sampler.steps_per_epoch - 1
    fresh = factory()
    assert fresh.position(last) == (epoch, sampler.steps_per_epoch - 1)
    assert fresh.position(first) == (epoch, 0)
    assert fresh.position(last + 1) == (epoch + 1, 0)


@given(st.integers(1, 48), st.data())
def test_every_number_of_processes_that_divides_the_lanes_shares_them_out(lanes, data):
    batches = BatchesConfig(lanes=lanes)
    world = data.draw(st.sampled_from([number for number in range(1, lanes + 1) if lanes % number == 0]))
    shares = [batches.lanes_of(rank, world) for rank in range(world)]
    assert sorted(lane for share in shares for lane in share) == list(range(lanes))
    assert {len(share) for share in shares} == {lanes // world}


# --- what a user sees of it ---------------------------------------------------------------------------


def test_a_process_count_that_does_not_divide_the_lanes_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"lanes is 12.* 5 processes.*1, 2, 3, 4, 6, 12 .*multiple of 5"):
        BatchesConfig(lanes=12).lanes_of(0, 5)


@pytest.mark.parametrize("num_shards", [1, 3, 50, 400])
def test_lanes_end_an_epoch_together_whatever_the_number_of_shards(num_shards):
    sampler = make_sampler(random_durations_s(8000), num_shards, BatchesConfig(lanes=16, seconds=60))
    read = Counter(batch.lane for batch in batches_of(sampler, 0) if len(batch.utterances))
    assert set(read.values()) == {sampler.steps_per_epoch}


@settings(max_examples=60, deadline=None)
@given(sampler_factories(), st.integers(0, 3))
def test_a_lane_is_idle_only_where_utterances_are_fewer_than_slots(factory, epoch):
    sampler = factory()
    batches = batches_of(sampler, epoch)
    idle = [batch for batch in batches if len(batch.utterances) == 0]
    if idle:
        assert max(len(batch.utterances) for batch in batches) == 1
        assert len({batch.step for batch in idle}) == 1


@pytest.mark.parametrize("lanes", [1, 8, 64])
def test_steps_are_within_a_few_per_cent_of_the_fewest_that_the_budget_allows(lanes):
    durations_s = random_durations_s(20_000)
    batches = BatchesConfig(lanes=lanes, seconds=60, attention_s=30)
    sampler = make_sampler(durations_s, 200, batches, speeds=(1.0,))
    # An utterance takes at least 1 / k of a micro-batch when the budget allows k of its length.
    fewest = (1 / (batches.seconds // (durations_s * (1 + durations_s / batches.attention_s)))).sum()
    assert fewest / lanes <= sampler.steps_per_epoch < 1.05 * fewest / lanes + 1


def test_an_epoch_that_draws_too_many_batches_reads_those_of_the_first_in_another_order():
    sampler = make_sampler(random_durations_s(400), 6, BatchesConfig(lanes=2, seconds=20))
    orders = [[tuple(batch.utterances.tolist()) for batch in batches_of(sampler, epoch)] for epoch in range(60)]
    again = [order for order in orders[1:] if len(set(order) & set(orders[0])) > 0.9 * len(order)]
    # Rare, or else epochs would repeat each other.
    assert 1 <= len(again) <= 3
    for order in again:
        assert order != orders[0]
        assert sorted(one for batch in order for one in batch) == list(range(400))


def test_any_step_is_as_near_as_the_first():
    sampler = make_sampler(random_durations_s(20_000), 100, BatchesConfig(lanes=8))
    epochs = 10**9
    far = epochs * sampler.steps_per_epoch + 7
    began = time.process_time()
    assert sampler.position(far) == (epochs, 7)
    assert sampler.micro_batch(far, 3).epoch == epochs
    assert time.process_time() - began < 1.0


def test_few_shards_are_read_by_more_than_one_lane_when_there_are_many():
    batches = BatchesConfig(lanes=4, pool_shards=8)
    sampler = make_sampler(random_durations_s(12_000), 300, batches)
    lanes_of_shard = {}
    for batch in batches_of(sampler, 0):
        for utterance in batch.utterances.tolist():
            lanes_of_shard.setdefault(utterance * 300 // 12_000, set()).add(batch.lane)
    shared = [shard for shard, lanes in lanes_of_shard.items() if len(lanes) > 1]
    # Only the pool where one lane ends and the next begins.
    assert len(shared) <= (batches.lanes - 1) * batches.pool_shards
    assert max(map(len, lanes_of_shard.values())) == 2


def test_lanes_without_an_utterance_hand_out_empty_batches():
    sampler = make_sampler([2.0, 3.0, 4.0], 1, BatchesConfig(lanes=5))
    (lanes,) = epoch_of(sampler, 0)
    assert sorted(len(batch.utterances) for batch in lanes) == [0, 0, 1, 1, 1]


def test_epochs_and_seeds_differ_in_lanes_company_and_speed():
    batches = BatchesConfig(lanes=4, seconds=40)
    sampler = make_sampler(random_durations_s(2000), 100, batches, seed=1)
    other = make_sampler(random_durations_s(2000), 100, batches, seed=2)

    def layout(batches):
        """The sets of utterances that are a batch, and each utterance's lane and speed."""
        company = set()
        lanes = np.empty(2000)
        speeds = np.empty(2000)
        for batch in batches:
            if len(batch.utterances) > 2:
                company.add(frozenset(batch.utterances.tolist()))
            lanes[batch.utterances] = batch.lane
            speeds[batch.utterances] = batch.speeds
        return company, lanes, speeds

    company, lanes, speeds = layout(batches_of(sampler, 0))
    for epoch in (batches_of(sampler, 1), batches_of(other, 0)):
        other_company, other_lanes, other_speeds = layout(epoch)
        assert len(company & other_company) < 0.01 * len(company)
        # A quarter stays in place by chance among four lanes, a third keeps its speed.
        assert 0.1 < np.mean(lanes == other_lanes) < 0.4
        assert 0.28 < np.mean(speeds == other_speeds) < 0.39


def test_samples_follow_the_speed_and_batches_are_cut_after_it():
    durations_s = random_durations_s(500)
    sampler = make_sampler(durations_s, 10, BatchesConfig(lanes=2))
    recorded = np.round(durations_s * RATE_HZ)
    for batch in batches_of(sampler, 0):
        exact = recorded[batch.utterances] / batch.speeds.astype(np.float64)
        assert np.abs(batch.samples - exact).max(initial=0) <= 0.51


def test_what_cannot_be_used_is_excluded_under_its_reason():
    sampler = make_sampler(
        [40.0, 5.0, 0.05, 0.42, 0.46],
        1,
        BatchesConfig(max_utterance_s=30, min_utterance_s=0.1),
        min_frames=10,
    )
    reasons = {reason: ids.tolist() for reason, ids in sampler.excluded.items()}
    # Ten frames need 400 samples: 0.42 s has them as recorded, but not when played 1.1 times as fast.
    assert reasons == {"too long": [0], "too short": [2], "infeasible for CTC": [3]}


def test_utterances_without_a_transcript_are_used_unless_the_sampler_gets_which_have_one():
    durations_s = [3.0, 4.0, 5.0, 6.0, 99.0]
    everything = make_sampler(durations_s, 1, BatchesConfig(lanes=1))
    transcribed = make_sampler(durations_s, 1, BatchesConfig(lanes=1), transcribed=np.array([1, 0, 1, 0, 0], bool))
    for sampler, used in ((everything, [0, 1, 2, 3]), (transcribed, [0, 2])):
        assert sorted(np.concatenate([batch.utterances for batch in batches_of(sampler, 0)]).tolist()) == used
    assert transcribed.excluded["without a transcript"].tolist() == [1, 3, 4]
    assert "without a transcript" not in everything.excluded
    assert "without a transcript" not in make_sampler([3.0], 1, BatchesConfig(), transcribed=np.ones(1, bool)).excluded


def test_a_corpus_without_a_usable_utterance_is_refused_with_the_counts():
    with pytest.raises(DataError, match="of 3 in the index, 2 too long, 1 too short, 0 infeasible"):
        make_sampler([99.0, 0.01, 99.0], 1, BatchesConfig())


def test_seeds_and_order_are_those_of_the_first_version():
    # A run that was begun with one version goes on with the next: these numbers must never change.
    assert derive_seed(7, "dropout", 3) == 3400374145539792746
    assert derive_seed(7, "dropout", 3) != derive_seed(7, "dropout", "3")
    sampler = make_sampler(random_durations_s(60), 6, BatchesConfig(lanes=2, seconds=20), seed=7)
    assert sampler.steps_per_epoch == 10
    assert sampler.micro_batch(0, 0).utterances.tolist() == [25, 34]
    assert sampler.micro_batch(10, 1).utterances.tolist() == [14, 6, 40]
    assert sampler.micro_batch(10, 1).samples.tolist() == [2591, 2621, 2367]


def test_a_sampler_of_a_million_utterances_is_opened_in_two_seconds():
    samples = random_durations_s(1_000_000)
    began = time.process_time()
    sampler = make_sampler(samples, 2000, BatchesConfig(lanes=64, seconds=200))
    steps = sampler.steps_per_epoch
    assert time.process_time() - began < 2.0
    began = time.process_time()
    for step in range(1000):
        sampler.micro_batch(step % steps, 3)
    # A hundred microseconds each: nothing of the size of the corpus happens per step.
    assert time.process_time() - began < 0.5
