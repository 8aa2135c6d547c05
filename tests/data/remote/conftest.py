"""A split of twelve phrases in some shards, and a cache of its own for each test."""

import pytest
from phrases import phrase_utterances

from data.remote.settings import CACHE_VARIABLE
from data.shards.reader import ShardReader
from data.shards.writer import read_index, write_split


@pytest.fixture(scope="package")
def corpus(tmp_path_factory):
    """A folder with the split train."""
    folder = tmp_path_factory.mktemp("corpus")
    write_split(phrase_utterances(12), folder / "train", sample_rate_hz=16000, shard_seconds=10, seed=1)
    return folder


@pytest.fixture(scope="package")
def local(corpus):
    """All utterances as they are read from the folder."""
    reader = ShardReader(read_index(corpus / "train"))
    return [reader.read(number) for number in range(len(reader.index))]


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"
