"""Mixtures of corpora: what is read of each, how often, and what a corpus that joins later changes."""

import hashlib
import json
from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.sampling import mixture as mixture_module
from data.sampling.mixture import MAX_DEVIATION, MixedCorpus, Mixture, MixtureSampler, Part, draw_texts
from data.sampling.sampler import BatchesConfig, BatchSampler

RATE_HZ = 1000
SPEEDS = (0.9, 1.0, 1.1)


def encoder_frames(samples):
    return samples // 40


def arrays_of(durations_s, num_shards=4, first_shard=0, min_frames=3):
    count = len(durations_s)
    return {
        "shard": first_shard + np.arange(count, dtype=np.int32) * num_shards // max(count, 1),
        "samples": np.round(np.array(durations_s) * RATE_HZ).astype(np.int64),
        "tokens": np.arange(count, dtype=np.int32) % 7,
        "min_frames": np.full(count, min_frames, np.int32),
    }


def durations(count, seed=5, mean_s=4.0):
    return np.random.default_rng(seed).gamma(4.0, mean_s / 4, count) + 0.3


def make_mixture(corpora, batches, *, temperature=1.0, seed=3, languages=None):
    """A sampler over corpora, given as (MixedCorpus, durations); `languages` gives each corpus' languages in turn."""
    columns = {}
    numbers = []
    parts = []
    first_shard = 0
    over = "languages" if languages else "corpora"
    for corpus, durations_s in corpora:
        arrays = arrays_of(durations_s, first_shard=first_shard)
        first_shard += 4
        for name, array in arrays.items():
            columns.setdefault(name, []).append(array)
        of_corpus = languages[corpus.name] if languages else [None]
        first_part = len(parts)
        parts += [Part(corpus, language) for language in of_corpus]
        numbers.append(first_part + np.arange(len(durations_s)) % len(of_corpus))
    return MixtureSampler(
        Mixture(tuple(corpus for corpus, _ in corpora), temperature, over),
        parts,
        np.concatenate(numbers),
        **{name: np.concatenate(arrays) for name, arrays in columns.items()},
        batches=batches,
        seed=seed,
        sample_rate_hz=RATE_HZ,
        speeds=SPEEDS,
        encoder_frames=encoder_frames,
    )


def content(batch):
    return {name: np.asarray(value).tolist() for name, value in vars(batch).items()}


def batches_of(sampler, steps):
    return [sampler.micro_batch(step, lane) for step in steps for lane in range(sampler.batches.lanes)]


@st.composite
def mixture_factories(draw):
    """Makes the same mixture of one to four random corpora as often as it is called."""
    corpora = []
    for number in range(draw(st.integers(1, 4))):
        corpus = MixedCorpus(
            f"corpus-{number}",
            weight=draw(st.floats(0.05, 20.0)),
            from_step=draw(st.sampled_from([0, 0, 1, 7])) if number else 0,
        )
        durations_s = [2.0, *draw(st.lists(st.floats(0.05, 9.0), max_size=60))]
        corpora.append((corpus, durations_s))
    batches = BatchesConfig(
        lanes=draw(st.integers(1, 6)),
        seconds=draw(st.floats(1.0, 60.0)),
        pool_shards=draw(st.integers(1, 5)),
        attention_s=draw(st.floats(5.0, 100.0)),
    )
    languages = None
    if draw(st.booleans()):
        languages = {corpus.name: draw(st.sampled_from([["en"], ["en", "de"], ["de", ""]])) for corpus, _ in corpora}
    return partial(
        make_mixture,
        corpora,
        batches,
        temperature=draw(st.sampled_from([0.0, 0.3, 1.0])),
        seed=draw(st.integers(0, 2**40)),
        languages=languages,
    )


# --- what every mixture promises -------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(mixture_factories())
def test_no_corpus_reads_an_utterance_twice_within_its_own_epoch_and_none_is_missed(factory):
    sampler = factory()
    reads = {}
    for step in range(40):
        for lane in range(sampler.batches.lanes):
            batch = sampler.micro_batch(step, lane)
            part = sampler.part_of(step, lane)
            reads.setdefault((part, batch.epoch), Counter()).update(batch.utterances.tolist())
    excluded = {int(utterance) for utterances in sampler.excluded.values() for utterance in utterances}
    epochs = {}
    for (part, epoch), counts in reads.items():
        assert max(counts.values(), default=1) == 1
        assert not counts.keys() & excluded
        epochs.setdefault(part, {})[epoch] = set(counts)
    for part, by_epoch in epochs.items():
        # The epochs come one after the other, and every one but the last is whole.
        assert sorted(by_epoch) == list(range(len(by_epoch)))
        positions = set(sampler._positions[sampler.parts.index(part)].tolist())
        for epoch, utterances in by_epoch.items():
            if epoch < len(by_epoch) - 1:
                assert utterances == positions - excluded
            assert utterances <= positions


@settings(max_examples=40, deadline=None)
@given(mixture_factories(), st.data())
def test_a_fresh_mixture_answers_for_any_step_like_one_that_walked_there(factory, data):
    walked = factory()
    batches = batches_of(walked, range(25))
    step = data.draw(st.integers(0, 24))
    lanes = walked.batches.lanes
    fresh = batches_of(factory(), [step])
    assert list(map(content, fresh)) == list(map(content, batches[step * lanes : (step + 1) * lanes]))


@settings(max_examples=40, deadline=None)
@given(mixture_factories())
def test_the_totals_of_a_step_are_the_sums_over_its_lanes_and_never_empty(factory):
    sampler = factory()
    for step in range(25):
        batches = batches_of(sampler, [step])
        utterances = np.concatenate([batch.utterances for batch in batches])
        totals = sampler.totals(step)
        assert totals.utterances == len(utterances) > 0
        assert totals.tokens == sampler._tokens[utterances].sum()
        assert totals.frames == encoder_frames(np.concatenate([batch.samples for batch in batches])).sum()


@settings(max_examples=40, deadline=None)
@given(mixture_factories(), st.integers(0, 200))
def test_every_part_has_had_its_share_of_the_micro_batches_at_any_step(factory, steps):
    sampler = factory()
    segments = sampler._segments
    last = segments[-1].first_step
    expected = dict(segments[-1].counts)
    steps += last
    shares = sampler._shares(steps)
    weights = {number: share * sampler._slots(number) / sampler._hours[number] for number, share in shares.items()}
    read = sampler.micro_batches_read(steps)
    for number, weight in weights.items():
        share = weight / sum(weights.values())
        num_expected = expected.get(number, 0) + share * (steps - last) * sampler.batches.lanes
        assert abs(read[sampler.parts[number]] - num_expected) < MAX_DEVIATION


@settings(max_examples=30, deadline=None)
@given(mixture_factories(), st.integers(0, 12))
def test_the_count_of_what_was_read_is_that_of_a_walk(factory, steps):
    sampler = factory()
    walked = Counter()
    for step in range(steps):
        for lane in range(sampler.batches.lanes):
            walked[sampler.part_of(step, lane)] += 1
    assert {part: count for part, count in sampler.micro_batches_read(steps).items() if count} == dict(walked)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.lists(st.floats(0.1, 9.0), max_size=60), st.integers(1, 5), st.floats(0.1, 9.0))
def test_a_corpus_that_is_alone_at_the_start_is_read_as_without_a_mixture_bit_for_bit(lanes, others, joins, weight):
    durations_s = [2.0, 0.01, 30.5, *others]
    batches = BatchesConfig(lanes=lanes, seconds=10.0, pool_shards=2)
    single = BatchSampler(
        **arrays_of(durations_s),
        batches=batches,
        seed=3,
        sample_rate_hz=RATE_HZ,
        speeds=SPEEDS,
        encoder_frames=encoder_frames,
    )
    alone = make_mixture([(MixedCorpus("a", weight), durations_s)], batches, temperature=0.5)
    later = [(MixedCorpus("b", from_step=joins), durations(30)), (MixedCorpus("a"), durations_s)]
    joined = make_mixture(later, batches)
    assert alone.steps_per_epoch == single.steps_per_epoch
    for step in range(3 * single.steps_per_epoch):
        for lane in range(lanes):
            expected = content(single.micro_batch(step, lane))
            assert content(alone.micro_batch(step, lane)) == expected
            if step < joins:
                batch = content(joined.micro_batch(step, lane))
                batch["utterances"] = [utterance - 30 for utterance in batch["utterances"]]
                assert batch == expected


@settings(max_examples=30, deadline=None)
@given(mixture_factories(), st.integers(1, 15))
def test_a_corpus_that_joins_leaves_the_steps_before_as_they_were_and_the_others_within_their_epochs(factory, joins):
    corpora, batches = factory.args
    before = factory()
    newcomer = (MixedCorpus("newcomer", from_step=joins + 7), durations(20))
    keywords = dict(factory.keywords)
    if keywords["languages"]:
        keywords["languages"] = {**keywords["languages"], "newcomer": ["fr"]}
    after = make_mixture([*corpora, newcomer], batches, **keywords)
    for step in range(joins + 7):
        assert list(map(content, batches_of(after, [step]))) == list(map(content, batches_of(before, [step])))

    # What each of the others reads is the same sequence as before; only how soon it comes has changed.
    sequences = []
    for sampler in (before, after):
        sequence = {}
        for step in range(joins + 30):
            for lane in range(batches.lanes):
                part = sampler.part_of(step, lane)
                sequence.setdefault(part, []).append(sampler.micro_batch(step, lane).utterances.tolist())
        sequences.append(sequence)
    for part, of_part in sequences[0].items():
        joint = min(len(of_part), len(sequences[1].get(part, [])))
        assert of_part[:joint] == sequences[1].get(part, [])[:joint]
    read = after.micro_batches_read(10**9)
    assert sum(count for part, count in read.items() if part.corpus.name == "newcomer") > 0


def test_the_plan_of_a_mixture_is_that_of_every_machine_and_version():
    lengths_s = [0.5 + number * 37 % 61 / 10 for number in range(60)]
    corpora = [
        (MixedCorpus("a", 3.0), lengths_s),
        (MixedCorpus("b"), lengths_s[:30]),
        (MixedCorpus("c", from_step=5), lengths_s[40:50]),
    ]
    sampler = make_mixture(corpora, BatchesConfig(lanes=3, seconds=15.0, pool_shards=2), temperature=0.5)
    text = json.dumps([content(batch) for batch in batches_of(sampler, range(40))])
    # Runs go on under later versions: what they read must not change.
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "daabccc58efbf13e"


# --- shares -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "temperature", "expected"),
    [
        ((1, 1), 1.0, (0.9, 0.1)),
        ((1, 3), 1.0, (0.75, 0.25)),
        ((3, 1), 0.0, (0.75, 0.25)),
        ((1, 1), 0.0, (0.5, 0.5)),
        ((1, 1), 0.5, (0.75, 0.25)),
        ((1, 3), 0.5, (0.5, 0.5)),
    ],
)
def test_a_share_is_weight_times_hours_to_the_temperature(weights, temperature, expected):
    parts = [Part(MixedCorpus(name, weight)) for name, weight in zip("ab", weights, strict=True)]
    mixture = Mixture(tuple(part.corpus for part in parts), temperature)
    shares = mixture.shares({parts[0]: 9.0, parts[1]: 1.0})
    assert tuple(shares.values()) == pytest.approx(expected)


def test_over_languages_a_temperature_levels_languages_and_leaves_corpora_of_one_language_in_proportion():
    first, second = MixedCorpus("a"), MixedCorpus("b", weight=2.0)
    mixture = Mixture((first, second), 0.0, "languages")
    shares = mixture.shares({Part(first, "en"): 6.0, Part(second, "en"): 1.0, Part(second, "de"): 0.5})
    assert list(shares.values()) == pytest.approx([0.375, 0.125, 0.5])


@pytest.mark.parametrize(("weight", "lanes"), [(1.0, 3), (3.0, 4), (20.0, 1), (0.05, 8)])
def test_hours_read_are_the_shares_within_a_hundredth_though_corpora_differ_in_length_of_utterances(weight, lanes):
    corpora = [
        (MixedCorpus("long", weight), durations(150, mean_s=8.0)),
        (MixedCorpus("short"), durations(400, mean_s=1.0)),
    ]
    sampler = make_mixture(corpora, BatchesConfig(lanes=lanes, seconds=20.0), temperature=0.0)
    seconds = Counter()
    # A multiple of epochs of both within any rounding.
    steps = 6000 // lanes
    for step in range(steps):
        for lane in range(lanes):
            batch = sampler.micro_batch(step, lane)
            seconds[sampler.part_of(step, lane).name] += float((batch.samples * batch.speeds).sum()) / RATE_HZ
    share = seconds["long"] / seconds.total()
    assert share == pytest.approx(weight / (weight + 1), abs=0.01)
    for row in sampler.progress(steps):
        assert row.hours_read == pytest.approx(seconds[row.part.name] / 3600, rel=0.05)
        assert row.hours_read == pytest.approx(row.epochs * row.hours)


def test_a_step_of_a_mixture_far_away_is_there_at_once():
    sampler = make_mixture(
        [(MixedCorpus("a"), durations(500)), (MixedCorpus("b", from_step=3), durations(50))],
        BatchesConfig(lanes=4, seconds=20.0),
        temperature=0.5,
    )
    far = 10**12
    assert len(sampler.micro_batch(far, 3).utterances)
    assert sampler.micro_batch(far, 3).epoch > 10**9


def test_a_corpus_without_a_usable_utterance_is_refused_by_its_name_and_a_language_without_one_is_not():
    batches = BatchesConfig(lanes=1, seconds=20.0)
    with pytest.raises(DataError, match="No utterance of the corpus broken is left"):
        make_mixture([(MixedCorpus("whole"), [2.0]), (MixedCorpus("broken"), [0.01, 0.02])], batches)
    sampler = make_mixture([(MixedCorpus("whole"), [2.0, 0.01])], batches, languages={"whole": ["en", "de"]})
    assert {part.name for part in sampler.micro_batches_read(5)} == {"whole/en"}


# --- texts of a tokenizer -----------------------------------------------------------------------------------


class Texts:
    """The index of utterances of a second each."""

    def __init__(self, texts):
        self.texts = texts
        self.samples = np.full(len(texts), 16000)
        self.text_length = np.array(list(map(len, texts)))

    def __len__(self):
        return len(self.texts)

    def transcripts(self):
        return iter(self.texts)


def drawn(mixture):
    parts = [Part(corpus) for corpus in mixture.corpora]
    texts = [f"a{number}" for number in range(900)] + [f"b{number}" for number in range(100)]
    part = np.repeat([0, 1], [900, 100])
    return list(draw_texts(parts, part, Texts(texts), mixture, seed=1))


def test_a_tokenizer_reads_each_corpus_as_often_as_the_mixture_does():
    mixture = Mixture((MixedCorpus("a"), MixedCorpus("b")), 0.0)
    texts = drawn(mixture)
    assert Counter(text[0] for text in texts) == {"a": 900, "b": 900}
    assert len(set(texts)) == 1000
    natural = drawn(Mixture(mixture.corpora, 1.0))
    assert len(natural) == len(set(natural)) == 1000
    half = Counter(text[0] for text in drawn(Mixture(mixture.corpora, 0.5)))
    assert half["a"] == 900
    assert half["b"] == pytest.approx(300, abs=1)


def test_more_texts_than_a_tokenizer_can_hold_are_drawn_in_proportion_and_no_character_is_lost(monkeypatch):
    monkeypatch.setattr(mixture_module, "MAX_DRAWN_TEXTS", 100)
    mixture = Mixture((MixedCorpus("a"), MixedCorpus("b")), 0.0)
    texts = drawn(mixture)
    counts = Counter(text[0] for text in texts)
    assert 70 < len(texts) < 140
    assert counts["a"] == pytest.approx(counts["b"], abs=25)
    assert set("0123456789ab") == set("".join(texts))
    assert texts == drawn(mixture)
