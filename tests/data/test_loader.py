"""Batches of a sampler, on real speech."""

import logging
import subprocess
import sys
import threading
import time
from itertools import chain
from pathlib import Path

import pytest
import torch
from phrases import phrase_utterances

import data.loader
from data.errors import DataError
from data.features import FeaturesConfig
from data.loader import Loader
from data.sampling.sampler import BatchesConfig, BatchSampler
from data.shards.reader import ShardReader, UtteranceError
from data.shards.writer import read_index, write_split
from data.text.tokenizer import TokenizerConfig, token_lengths, train_tokenizer

LANES = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Reader, tokenizer and sampler over 120 phrases in nine shards."""
    folder = tmp_path_factory.mktemp("loader")
    write_split(phrase_utterances(120), folder / "train", sample_rate_hz=16000, shard_seconds=30, seed=1)
    index = read_index(folder / "train")
    tokenizer = train_tokenizer(index.transcripts(), TokenizerConfig(), folder / "tokenizer")
    return ShardReader(index), tokenizer, make_sampler(index, tokenizer)


def make_sampler(index, tokenizer, lanes=LANES):
    tokens, min_frames = token_lengths(index.transcripts(), tokenizer)
    return BatchSampler(
        index.shard,
        index.samples,
        tokens,
        min_frames,
        BatchesConfig(lanes=lanes, seconds=12),
        7,
        16000,
        (0.9, 1.0, 1.1),
        encoder_frames=lambda samples: FeaturesConfig().num_frames(samples) // 4,
    )


def load(corpus, start, stop, *, lanes=range(LANES), workers=2):
    reader, tokenizer, sampler = corpus
    return list(Loader(sampler, reader, tokenizer, lanes, workers).steps(start, stop))


def assert_same(steps, expected_steps):
    """Two lists of steps are the same bit by bit."""
    assert [len(batches) for batches in steps] == [len(batches) for batches in expected_steps]
    for batch, expected in zip(chain(*steps), chain(*expected_steps), strict=True):
        for name, value in vars(batch).items():
            expected_value = getattr(expected, name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, expected_value), name
            else:
                assert value == expected_value, name


# --- the equations ------------------------------------------------------------------------------------


def test_stopping_anywhere_and_going_on_gives_the_same_steps(corpus):
    # Into the second epoch.
    num_steps = corpus[2].steps_per_epoch + 3
    whole = load(corpus, 0, num_steps)
    for cut in range(num_steps + 1):
        assert_same(load(corpus, 0, cut) + load(corpus, cut, num_steps), whole)


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_the_number_of_workers_changes_nothing(corpus, workers):
    assert_same(load(corpus, 2, 8, workers=workers), load(corpus, 2, 8, workers=0))


@pytest.mark.parametrize("world", [2, 4])
def test_lanes_spread_over_processes_are_together_those_of_one_process(corpus, world):
    batches = corpus[2].batches
    shares = [load(corpus, 0, 6, lanes=batches.lanes_of(rank, world)) for rank in range(world)]
    together = [sorted(chain(*step), key=lambda batch: batch.lane) for step in zip(*shares, strict=True)]
    assert_same(together, load(corpus, 0, 6))


# --- what a batch holds -------------------------------------------------------------------------------


def test_a_batch_is_what_the_sampler_says_padded_with_zeros(corpus):
    reader, tokenizer, sampler = corpus
    keys = list(reader.index.keys())
    for step, lanes in enumerate(load(corpus, 0, sampler.steps_per_epoch)):
        for lane, batch in enumerate(lanes):
            spec = sampler.micro_batch(step, lane)
            assert (batch.step, batch.lane, batch.quarantined) == (step, lane, [])
            assert batch.keys == [keys[utterance] for utterance in spec.utterances]
            assert batch.samples_B.tolist() == spec.samples.tolist()
            assert batch.waveforms_BS.shape == (len(spec.samples), max(spec.samples, default=0))
            for row, text in enumerate(batch.texts):
                length = int(batch.token_lengths_B[row])
                samples = int(batch.samples_B[row])
                assert tokenizer.decode(batch.tokens_BU[row, :length].tolist()) == text
                assert not batch.tokens_BU[row, length:].any()
                assert batch.waveforms_BS[row, :samples].abs().max() > 0.01
                assert not batch.waveforms_BS[row, samples:].any()
        totals = sampler.totals(step)
        assert sum(len(batch.keys) for batch in lanes) == totals.utterances
        assert sum(int(batch.token_lengths_B.sum()) for batch in lanes) == totals.tokens


def test_a_lane_without_an_utterance_gives_an_empty_batch(corpus):
    reader, tokenizer, _ = corpus
    sampler = make_sampler(reader.index, tokenizer, lanes=len(reader.index) + 2)
    (batches,) = Loader(sampler, reader, tokenizer, range(sampler.batches.lanes), workers=0).steps(0, 1)
    empty = [batch for batch in batches if not batch.keys]
    assert len(empty) == 2
    for batch in empty:
        assert (batch.waveforms_BS.shape, batch.tokens_BU.shape) == ((0, 0), (0, 0))
        assert len(batch.samples_B) == len(batch.token_lengths_B) == 0


def test_without_a_tokenizer_the_same_recordings_come_without_tokens(corpus):
    reader, _, sampler = corpus
    for with_tokens, without in zip(load(corpus, 0, 3), load((reader, None, sampler), 0, 3), strict=True):
        for batch, silent in zip(with_tokens, without, strict=True):
            assert silent.waveforms_BS.equal(batch.waveforms_BS)
            assert silent.keys == batch.keys
            assert silent.tokens_BU.shape == (len(batch.keys), 0)
            assert not silent.token_lengths_B.any()


# --- broken and slow recordings -----------------------------------------------------------------------


class FaultyReader:
    """Reads like another one, except that `fault` is called with the number of each utterance first."""

    def __init__(self, reader, fault):
        self._reader = reader
        self._fault = fault
        self.index = reader.index
        self.shard = reader.shard

    def read(self, utterance):
        self._fault(utterance)
        return self._reader.read(utterance)


def broken(*utterances):
    def fault(utterance):
        if utterance in utterances:
            raise UtteranceError(f"key {utterance}", f"number {utterance} is broken")

    return fault


def faulty(corpus, fault, *, workers=2, **options):
    reader, tokenizer, sampler = corpus
    return Loader(sampler, FaultyReader(reader, fault), tokenizer, range(LANES), workers, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_utterance_is_skipped_and_named_and_the_others_stay_in_place(corpus, workers, caplog):
    sampler = corpus[2]
    num_steps = sampler.steps_per_epoch
    spec = sampler.micro_batch(1, 2)
    victim = int(spec.utterances[0])
    loader = faulty(corpus, broken(victim), workers=workers)
    with caplog.at_level(logging.WARNING):
        steps = list(loader.steps(0, num_steps))
    sound = load(corpus, 0, num_steps)
    assert steps[1][2].quarantined == [f"key {victim}"]
    assert steps[1][2].keys == sound[1][2].keys[1:]
    assert torch.equal(steps[1][2].samples_B, sound[1][2].samples_B[1:])
    # The padding goes with the longest one.
    assert steps[1][2].waveforms_BS.shape[1] == spec.samples[1]
    steps[1][2] = sound[1][2]
    assert_same(steps, sound)
    assert (loader.utterances_broken, loader.utterances_seen) == (1, 120)
    assert f"number {victim} is broken" in caplog.text


def test_too_many_broken_utterances_stop_the_run_with_both_counts(corpus):
    loader = faulty(corpus, broken(*range(0, 120, 4)))
    with pytest.raises(DataError, match=r"10 of the first \d+ utterances .* more than the 1.0%.*is broken"):
        list(loader.steps(0, 20))


def test_a_higher_ratio_lets_them_pass_and_the_log_stays_short(corpus, caplog):
    loader = faulty(corpus, broken(*range(0, 120, 4)), max_broken_ratio=0.5)
    with caplog.at_level(logging.WARNING):
        list(loader.steps(0, corpus[2].steps_per_epoch))
    assert loader.utterances_broken == 30
    # The first ten, and the sixteenth.
    assert len(caplog.records) == 11


def test_other_errors_are_no_broken_utterances(corpus):
    def fault(_):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(faulty(corpus, fault).steps(0, 1))


def test_a_slow_shard_is_named_while_the_loader_waits(corpus, monkeypatch, caplog):
    monkeypatch.setattr(data.loader, "WAITING_LOG_S", 0.1)
    slow = int(corpus[2].micro_batch(0, 0).utterances[0])
    loader = faulty(corpus, lambda utterance: time.sleep(0.35 if utterance == slow else 0))
    with caplog.at_level(logging.WARNING):
        assert_same(list(loader.steps(0, 2)), load(corpus, 0, 2))
    shard = corpus[0].shard(slow)
    waiting = [record.getMessage() for record in caplog.records]
    assert 2 <= len(waiting) <= 4
    assert all(message.startswith(f"Waiting for shard {shard}, ") for message in waiting)


def test_a_shard_that_never_answers_ends_the_process_with_an_error(corpus, tmp_path):
    """In a process of its own: the thread that hangs must not keep it from ending."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, threading\n"
        "from types import SimpleNamespace\n"
        "import numpy as np\n"
        "from data.loader import Loader\n"
        "from data.sampling.sampler import BatchSpec\n"
        "one = np.array([1])\n"
        "batch = BatchSpec(0, 0, 0, one, one, one)\n"
        "sampler = SimpleNamespace(micro_batch=lambda step, lane: batch)\n"
        "hang = threading.Event().wait\n"
        "reader = SimpleNamespace(read=lambda _: hang(), shard=lambda _: 'shard-000007.tar')\n"
        "next(Loader(sampler, reader, None, [0], 1, patience_s=0.2).steps(0, 1))\n"
    )
    repository = Path(data.loader.__file__).parents[1]
    run = subprocess.run(
        [sys.executable, script],
        env={"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert "DataError: Utterance 1 of shard-000007.tar did not arrive within 0 s" in run.stderr


@pytest.mark.parametrize("connections", [0, 3])
@pytest.mark.parametrize("consumed", [0, 2])
def test_threads_end_when_the_iterator_is_closed(corpus, consumed, connections):
    reader, tokenizer, sampler = corpus
    before = set(threading.enumerate())
    steps = Loader(sampler, reader, tokenizer, range(LANES), 4, connections=connections).steps(0, 20)
    for _ in range(consumed):
        next(steps)
    assert len(set(threading.enumerate()) - before) == (4 + connections if consumed else 0)
    steps.close()
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def test_threads_that_wait_for_a_store_end_when_it_answers_after_the_iterator_was_closed(corpus):
    reader, tokenizer, sampler = corpus
    answered = threading.Event()

    class StalledReader(FaultyReader):
        decode = reader.decode

        def fetch(self, utterance):
            answered.wait(30)
            return reader.fetch(utterance)

    before = set(threading.enumerate())
    stalled = StalledReader(reader, lambda _: None)
    steps = Loader(sampler, stalled, tokenizer, range(LANES), 2, connections=2, patience_s=0.1).steps(0, 20)
    with pytest.raises(DataError, match="did not arrive within"):
        next(steps)
    answered.set()
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def test_only_a_few_steps_are_read_ahead(corpus):
    read = []
    steps = faulty(corpus, read.append).steps(0, corpus[2].steps_per_epoch)
    next(steps)
    time.sleep(0.3)
    ahead = sum(corpus[2].totals(step).utterances for step in range(data.loader.STEPS_AHEAD + 1))
    assert len(read) <= ahead < 120
    steps.close()
