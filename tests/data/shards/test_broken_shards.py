"""The ways in which shards break while a training reads them.

    batches with a fault == batches without, but for the rows of what is broken
    steps(0, n) == steps(0, k) + steps(k, n)

for every kind, any number of threads, one process or two, in a folder or behind a web server.
"""

import io
import re
import shutil
from itertools import chain

import numpy as np
import pytest
import soundfile
import torch
from damage import change_byte, flac_of, replace_utterance
from phrases import phrase_utterances
from web_servers import serve_files

from data.errors import DataError
from data.features import FeaturesConfig
from data.loader import Loader
from data.remote.settings import CACHE_VARIABLE
from data.sampling.sampler import BatchesConfig, BatchSampler
from data.shards.index import read_index
from data.shards.reader import ShardReader
from data.shards.writer import write_split
from data.text.tokenizer import TokenizerConfig, token_lengths, train_tokenizer

LANES = 2
NUM_STEPS = 9
VICTIM = 7


class Corpus:
    """A sound split of 30 phrases, its tokenizer, and the batches of some steps."""

    def __init__(self, folder):
        self.folder = folder
        write_split(phrase_utterances(30), folder / "train", sample_rate_hz=16000, shard_seconds=9, seed=1)
        index = read_index(folder / "train")
        self.keys = list(index.keys())
        self.tokenizer = train_tokenizer(index.transcripts(), TokenizerConfig(), folder / "tokenizer")
        tokens, min_frames = token_lengths(index.transcripts(), self.tokenizer)
        self.sampler = BatchSampler(
            index.shard,
            index.samples,
            tokens,
            min_frames,
            BatchesConfig(lanes=LANES, seconds=10, pool_shards=3),
            7,
            16000,
            (0.9, 1.0, 1.1),
            encoder_frames=lambda samples: FeaturesConfig().num_frames(samples) // 4,
        )
        self.index = index
        # All of an epoch, and the beginning of the next.
        assert self.sampler.steps_per_epoch < NUM_STEPS
        self.batches = self.load(folder / "train", 0, NUM_STEPS)

    def loader(self, split, *, workers=1, lanes=range(LANES), max_damaged=1.0, **options):
        reader = ShardReader(read_index(split, max_damaged=max_damaged), attempts=2, first_pause_s=0.01)
        options = {"max_broken_ratio": 1.0, "only_known": True} | options
        return Loader(self.sampler, reader, self.tokenizer, lanes, workers, **options)

    def load(self, split, start, stop, **options):
        return list(self.loader(split, **options).steps(start, stop))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("sound"))


# --- the kinds: each breaks a copy, and gives the positions of what is broken, and the reason ----------


def missing_shard(split, index):
    name = index.shard_name(VICTIM)
    (split / name).unlink()
    return np.flatnonzero(index.shard == index.shard[VICTIM]), "its shard is not there"


def truncated_tar(split, index):
    shard = split / index.shard_name(VICTIM)
    cut = int(index.offset[VICTIM] + index.size[VICTIM] // 2)
    shard.write_bytes(shard.read_bytes()[:cut])
    same_shard = index.shard == index.shard[VICTIM]
    return np.flatnonzero(same_shard & (index.offset >= index.offset[VICTIM])), r"the shard gave \d+ bytes"


def bad_member(split, index):
    # In the name of the first member, which the checksum of its header covers.
    change_byte(split, VICTIM, 3)
    return [VICTIM], r"its bytes are not readable .*begins no member"


def undecodable_audio(split, index):
    flac = bytearray(flac_of(int(index.samples[VICTIM]), 16000))
    # The frames behind the header, which says what the index says.
    flac[100:] = bytes(len(flac) - 100)
    replace_utterance(split, VICTIM, bytes(flac))
    return [VICTIM], r"its audio cannot be decoded \(libsndfile: [^<]+\)|it ends after"


def no_audio_at_all(split, index):
    replace_utterance(split, VICTIM, b"")
    return [VICTIM], r"its audio cannot be decoded \(libsndfile: [^<]+\)"


def numbers_that_are_none(split, index):
    # A WAV of floats, which libsndfile reads under any name.
    stream = io.BytesIO()
    soundfile.write(stream, np.full(index.samples[VICTIM], np.nan), 16000, format="WAV", subtype="FLOAT")
    replace_utterance(split, VICTIM, stream.getvalue())
    return [VICTIM], "it is a WAV under the name of a FLAC"


def wrong_sample_rate(split, index):
    replace_utterance(split, VICTIM, flac_of(int(index.samples[VICTIM]), 8000))
    return [VICTIM], "at 8000 Hz, the index promises .* at 16000 Hz"


def empty_text(split, index):
    replace_utterance(split, VICTIM, text="")
    return [VICTIM], r"its text has 0 characters, the index promises \d+"


def unknown_symbols(split, index):
    replace_utterance(split, VICTIM, text="漢" * int(index.text_length[VICTIM]))
    return [VICTIM], "its text has symbols that the tokenizer does not know: '漢'"


def changed_text(split, index):
    # In the label: it stays JSON, and another text or speaker.
    shard = (split / index.shard_name(VICTIM)).read_bytes()
    start = int(index.offset[VICTIM])
    change_byte(split, VICTIM, shard.index(b'"narrator"', start) - start + 4)
    return [VICTIM], "the file was changed"


def changed_audio(split, index):
    change_byte(split, VICTIM, int(index.size[VICTIM]) // 2)
    return [VICTIM], "the file was changed"


KINDS = [
    missing_shard,
    truncated_tar,
    bad_member,
    undecodable_audio,
    no_audio_at_all,
    numbers_that_are_none,
    wrong_sample_rate,
    empty_text,
    unknown_symbols,
    changed_text,
    changed_audio,
]


def assert_same_but_for(steps, expected_steps, broken_keys):
    """Two lists of steps are the same, bit by bit, but that those keys are quarantined in the first."""
    for batch, expected in zip(chain(*steps), chain(*expected_steps), strict=True):
        assert (batch.step, batch.lane) == (expected.step, expected.lane)
        assert batch.quarantined == [key for key in expected.keys if key in broken_keys]
        sound = [row for row, key in enumerate(expected.keys) if key not in broken_keys]
        assert batch.keys == [expected.keys[row] for row in sound]
        assert batch.texts == [expected.texts[row] for row in sound]
        assert torch.equal(batch.samples_B, expected.samples_B[sound])
        num_samples = batch.waveforms_BS.shape[1]
        assert torch.equal(batch.waveforms_BS, expected.waveforms_BS[sound, :num_samples])
        num_tokens = batch.tokens_BU.shape[1]
        assert torch.equal(batch.tokens_BU, expected.tokens_BU[sound, :num_tokens])


# Behind a web server, what is not a file that is there, as long as it should be, and sound looks otherwise.
CASES = [(kind, "folder") for kind in KINDS]
CASES += [(kind, "web server") for kind in (missing_shard, truncated_tar, changed_text)]


@pytest.mark.parametrize(("kind", "place"), CASES)
def test_what_is_broken_is_quarantined_and_all_else_is_as_it_was(corpus, tmp_path, monkeypatch, kind, place):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    split = tmp_path / "train"
    shutil.copytree(corpus.folder / "train", split)
    broken, reason = kind(split, corpus.index)
    # Where it lies now: what was replaced lies elsewhere.
    index = read_index(split, check_shards=False)
    broken_keys = {corpus.keys[utterance] for utterance in broken}
    errors = []
    with serve_files(tmp_path) as server:
        folder = split if place == "folder" else f"{server.url}/train"
        for workers, connections in ((0, 0), (1, 0), (2, 4)):
            options = {"workers": workers, "connections": connections, "on_broken": errors.append}
            steps = corpus.load(folder, 0, NUM_STEPS, **options)
            assert_same_but_for(steps, corpus.batches, broken_keys)
        # Two processes, of which each is stopped and goes on.
        shares = []
        for rank in range(2):
            lanes = corpus.sampler.batches.lanes_of(rank, 2)
            shares.append(corpus.load(folder, 0, 5, lanes=lanes) + corpus.load(folder, 5, NUM_STEPS, lanes=lanes))
        together = [list(chain(*step)) for step in zip(*shares, strict=True)]
        assert_same_but_for(together, corpus.batches, broken_keys)

    assert {error.key for error in errors} == broken_keys
    for error in errors:
        utterance = corpus.keys.index(error.key)
        assert error.shard == f"{folder}/{index.shard_name(utterance)}"
        assert error.offset == index.offset[utterance]
        assert re.search(reason, error.reason)
        assert error.reason in str(error)


def test_more_than_the_stated_share_ends_the_run_and_names_the_setting(corpus, tmp_path):
    split = tmp_path / "train"
    shutil.copytree(corpus.folder / "train", split)
    for utterance in range(12):
        replace_utterance(split, utterance, text="")
    with pytest.raises(
        DataError, match=r"10 of the first \d+ utterances are broken, .* 20.0% that cluster.storage.max"
    ):
        corpus.load(split, 0, NUM_STEPS, max_broken_ratio=0.2)


def test_texts_with_unknown_symbols_are_taken_where_any_text_is(corpus, tmp_path):
    split = tmp_path / "train"
    shutil.copytree(corpus.folder / "train", split)
    unknown_symbols(split, corpus.index)
    steps = corpus.load(split, 0, NUM_STEPS, only_known=False)
    assert not any(batch.quarantined for batch in chain(*steps))


# --- what is missing at the start -----------------------------------------------------------------------


@pytest.mark.parametrize("damage", [missing_shard, truncated_tar])
def test_a_run_begins_and_goes_on_without_a_shard_within_the_share(corpus, tmp_path, caplog, damage):
    split = tmp_path / "train"
    shutil.copytree(corpus.folder / "train", split)
    damage(split, corpus.index)
    name = corpus.index.shard_name(VICTIM)
    share = np.count_nonzero(corpus.index.shard == corpus.index.shard[VICTIM]) / len(corpus.index)
    index = read_index(split, max_damaged=share)
    assert index.fingerprint == corpus.index.fingerprint
    assert f"{name} should have" in caplog.text
    refusal = rf"{name} should have .* of 30 utterances .* above the [\d.]+% that cluster\.storage\.max_quarantined"
    with pytest.raises(DataError, match=refusal):
        read_index(split, max_damaged=share - 0.001)
    # Whoever writes or verifies shards takes them whole.
    with pytest.raises(DataError, match=rf"are not whole: {name} should have \d+ bytes and has \w+; remove"):
        read_index(split)


# --- fetching ahead ---------------------------------------------------------------------------------------


def test_fetching_ahead_changes_nothing(corpus):
    steps = corpus.load(corpus.folder / "train", 2, 8, workers=2, connections=16)
    assert_same_but_for(steps, corpus.batches[2:8], set())
