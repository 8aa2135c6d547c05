"""Utterances read in their order, several of a remote store at once."""

import threading
import time

import numpy as np
import pytest
from phrases import phrase_utterances
from web_servers import serve_files

from data.remote.settings import StorageConfig
from data.shards.index import read_index
from data.shards.read_ahead import read_ahead
from data.shards.reader import ShardReader, UtteranceError
from data.shards.writer import write_split

ORDER = [3, 0, 5, 5, 1, 7, 2, 6, 4]
STORAGE = StorageConfig(cache_gb=0, connections=4)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_split(phrase_utterances(8), folder / "train", sample_rate_hz=16000, shard_seconds=5, seed=1)
    return folder


@pytest.fixture
def server(corpus):
    with serve_files(corpus) as files:
        yield files


def test_the_order_is_kept_and_what_is_broken_has_its_error_in_its_place(corpus, server):
    local = ShardReader(read_index(corpus / "train"))
    remote = ShardReader(read_index(f"{server.url}/train"), STORAGE, attempts=1)
    lost = local.index.shard_name(5)
    server.fault = lambda name, number: "404" if name == lost else ""
    for utterance, example in zip(ORDER, read_ahead(remote, ORDER), strict=True):
        if local.index.shard_name(utterance) == lost:
            assert isinstance(example, UtteranceError)
            assert example.key == local.read(utterance).key
        else:
            assert example.key == local.read(utterance).key
            assert np.array_equal(example.waveform, local.read(utterance).waveform)
    keys = [example.key for example in read_ahead(local, ORDER)]
    assert keys == [local.read(utterance).key for utterance in ORDER]


def test_as_many_are_asked_for_at_once_as_there_are_connections(server):
    remote = ShardReader(read_index(f"{server.url}/train"), STORAGE)
    begun = threading.Barrier(4, timeout=20)

    def fault(name, number):
        if name.endswith(".tar") and not begun.broken and server.count("waited") < 4:
            server.requests.append(("waited", ""))
            # Passed by the fourth request that is there at the same time, and by none alone.
            begun.wait()
        return ""

    server.fault = fault
    assert len(list(read_ahead(remote, range(8)))) == 8
    assert server.count("waited") == 4


def test_whoever_stops_early_waits_for_no_answer(server):
    remote = ShardReader(read_index(f"{server.url}/train"), STORAGE, attempts=1)
    first = remote.index.shard_name(0)
    server.fault = lambda name, number: "stall" if name.endswith(".tar") and name != first else ""
    utterances = read_ahead(remote, range(8))
    assert not isinstance(next(utterances), UtteranceError)
    began = time.monotonic()
    utterances.close()
    assert time.monotonic() - began < 1
    server.released.set()
