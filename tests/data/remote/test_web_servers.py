"""Shards behind a web server that fails, stalls, truncates, and knows no ranges."""

import logging
import shutil
import traceback
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from web_servers import serve_files

import data.remote.retrying
import data.remote.stores
from data.errors import DataError
from data.remote.settings import StorageConfig
from data.shards.index import NoShardsError, read_index, read_summary
from data.shards.reader import ShardReader, UtteranceError

NO_CACHE = StorageConfig(cache_gb=0)


@pytest.fixture
def server(corpus, cache_folder, monkeypatch):
    # So much silence is a long time on loopback.
    monkeypatch.setattr(data.remote.stores, "STALL_S", 0.5)
    monkeypatch.setattr(data.remote.retrying, "MAX_ASKED_PAUSE_S", 0.1)
    with serve_files(corpus) as files:
        yield files


@pytest.fixture
def impatient(monkeypatch):
    """Files of the index are tried again soon, and not for long."""
    policy = data.remote.retrying.RetryPolicy(retry_s=5, first_pause_s=0.01, attempts=3)
    monkeypatch.setattr("data.shards.index.RetryPolicy", lambda: policy)


def open_reader(server, storage=None, **retries):
    retries = {"attempts": 3, "first_pause_s": 0.01} | retries
    return ShardReader(read_index(f"{server.url}/train"), storage, **retries)


def assert_same(example, expected):
    assert (example.key, example.text, example.speaker) == (expected.key, expected.text, expected.speaker)
    assert np.array_equal(example.waveform, expected.waveform)


def in_shards(fault, first=0, last=10**9):
    """The fault in requests first .. last - 1 for each shard, and in none for the other files."""
    return lambda name, number: fault if name.endswith(".tar") and first <= number < last else ""


def test_each_utterance_is_one_request_for_its_range_and_kept_for_the_next_time(server, local):
    reader = open_reader(server)
    server.requests.clear()
    server.bytes_sent = 0
    for number, expected in enumerate(local):
        assert_same(reader.read(number), expected)
    assert len(server.requests) == len(local)
    assert server.bytes_sent == reader.index.size.sum()
    again = open_reader(server)
    server.requests.clear()
    for number, expected in enumerate(local):
        assert_same(again.read(number), expected)
    assert server.requests == []


@pytest.mark.parametrize(
    "fault", ["500", "502", "503", "408", "429", "cut", "stall", "elsewhere", "short", "flip", "garbled"]
)
def test_what_goes_wrong_once_is_read_a_second_time(server, local, fault, caplog):
    server.fault = in_shards(fault, 0, 1)
    reader = open_reader(server)
    assert_same(reader.read(5), local[5])
    assert server.count(reader.index.shard_name(5)) == 2
    # The next time it comes from the cache, which has nothing of the first attempt.
    server.fault = in_shards("500")
    assert_same(reader.read(5), local[5])


@pytest.mark.parametrize("fault", ["500", "cut", "elsewhere", "short"])
def test_what_goes_on_going_wrong_is_an_utterance_with_shard_key_offset_and_reason(server, local, fault):
    server.fault = in_shards(fault)
    reader = open_reader(server)
    with pytest.raises(UtteranceError, match="could not be read in 3 attempts") as caught:
        reader.read(5)
    index = reader.index
    assert caught.value.key == local[5].key
    assert caught.value.shard == f"{server.url}/train/{index.shard_name(5)}"
    assert caught.value.offset == index.offset[5]
    # A shard that has failed is not waited for at each of its utterances.
    server.requests.clear()
    with pytest.raises(UtteranceError, match="could not be read in 1 attempt "):
        reader.read(5)
    assert server.count(index.shard_name(5)) == 1
    # But it is noticed when it is well again.
    server.fault = in_shards("")
    assert_same(reader.read(5), local[5])


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("404", "its shard is not there"),
        ("410", "its shard is not there"),
        ("401", "answered 401"),
        ("403", "answered 403"),
        ("400", "answered 400"),
        ("packed", "sends the file compressed"),
        ("astray", "to what is no web server"),
    ],
)
def test_what_would_be_answered_again_is_asked_once(server, fault, reason):
    reader = open_reader(server)
    server.fault = in_shards(fault)
    server.requests.clear()
    with pytest.raises(UtteranceError, match=reason):
        reader.read(0)
    assert server.count(reader.index.shard_name(0)) == 1


def test_bytes_that_are_others_each_time_are_named_with_both_checksums(server):
    server.fault = in_shards("flip")
    reader = open_reader(server)
    with pytest.raises(UtteranceError, match=r"CRC-32 is [0-9a-f]{8}, the index has [0-9a-f]{8}: the file was changed"):
        reader.read(3)
    # Nothing of it is kept.
    server.fault = in_shards("")
    assert reader.read(3)


def test_retries_end_when_the_time_is_over(server):
    server.fault = in_shards("503")
    reader = open_reader(server, StorageConfig(retry_s=0.3), attempts=None, first_pause_s=0.05)
    with pytest.raises(UtteranceError, match=r"could not be read in [2-9] attempts"):
        reader.read(0)


def test_a_store_that_often_fails_is_not_all_that_the_log_is_about(caplog):
    policy = data.remote.retrying.RetryPolicy(first_pause_s=0.0)
    for _ in range(100):
        assert policy.begin().can_retry("shard-000000.tar", OSError("an answer that breaks off"))
    # The first twenty, the 32nd and the 64th.
    assert len(caplog.records) == 22


def test_a_server_without_ranges_gives_each_shard_once(server, local):
    server.fault = in_shards("whole")
    reader = open_reader(server)
    with ThreadPoolExecutor(8) as pool:
        for example, expected in zip(pool.map(reader.read, range(len(local))), local, strict=True):
            assert_same(example, expected)
    whole = [name for name, byte_range in server.requests if byte_range == "bytes=0-" and name.endswith(".tar")]
    assert sorted(whole) == sorted(reader.index.names)


@pytest.mark.parametrize("fault", ["cut", "endless", "flip"])
def test_a_whole_shard_that_is_not_the_one_of_the_index_is_not_kept(server, local, cache_folder, fault):
    server.fault = in_shards("whole")
    reader = open_reader(server)
    reader.read(0)
    # The server answers with whole files from here on, and the first one is wrong.
    name = reader.index.shard_name(len(local) - 1)
    server.fault = lambda requested, number: fault if requested == name and number == 0 else in_shards("whole")(name, 0)
    assert_same(reader.read(len(local) - 1), local[-1])


@pytest.mark.parametrize("storage", [NO_CACHE, StorageConfig(cache_gb=1e-4)])
def test_without_ranges_and_without_room_shards_are_read_past(server, local, storage):
    server.fault = in_shards("whole")
    reader = open_reader(server, storage)
    for number in (7, 0, len(local) - 1):
        assert_same(reader.read(number), local[number])


def test_a_changed_shard_without_ranges_costs_the_utterance_that_changed_and_no_other(server, corpus, local, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(corpus / "train", folder / "train")
    index = read_index(corpus / "train")
    shard = folder / "train" / index.shard_name(0)
    content = bytearray(shard.read_bytes())
    content[int(index.offset[0] + index.size[0] // 2)] ^= 1
    shard.write_bytes(content)
    server.folder = folder
    server.fault = in_shards("whole")
    reader = open_reader(server)
    with pytest.raises(UtteranceError, match="the file was changed"):
        reader.read(0)
    assert index.shard_name(1) == index.shard_name(0)
    assert_same(reader.read(1), local[1])


def test_a_server_that_sends_without_end_is_listened_to_for_what_was_asked(server, local, impatient):
    for name in ("shards.json", "index.npz", "transcripts.jsonl"):
        server.fault = lambda requested, number, name=name: "torrent" if requested == name else ""
        with pytest.raises(DataError):
            list(read_index(f"{server.url}/train").rows())
        assert server.bytes_sent < 2**28
    server.fault = in_shards("torrent")
    server.bytes_sent = 0
    assert_same(open_reader(server, NO_CACHE).read(3), local[3])
    reader = open_reader(server)
    assert_same(reader.read(3), local[3])
    assert server.bytes_sent < 2**26


def test_a_server_that_sends_a_byte_now_and_then_is_given_up(server, monkeypatch, impatient):
    monkeypatch.setattr(data.remote.stores, "STALL_S", 0.2)
    server.fault = in_shards("trickle")
    reader = open_reader(server, attempts=2)
    with pytest.raises(UtteranceError, match=r"could not be read in 2 attempts .*Timeout"):
        reader.read(0)
    server.fault = lambda *_: "trickle"
    with pytest.raises(DataError, match="was given up"):
        read_summary(f"{server.url}/train")


# --- the index ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["500", "429", "cut", "stall", "whole", "endless"])
def test_the_index_is_read_whatever_went_wrong_once(server, corpus, impatient, fault):
    server.fault = lambda name, number: fault if number == 0 else ""
    index = read_index(f"{server.url}/train")
    expected = read_index(corpus / "train")
    assert index.fingerprint == expected.fingerprint
    assert list(index.rows()) == list(expected.rows())
    assert np.array_equal(index.line_starts(), expected.line_starts())


def test_a_server_that_never_answers_well_is_one_clear_error(server, impatient):
    server.fault = lambda *_: "500"
    with pytest.raises(DataError, match=r"could not be read from http://.*/train: the store did not give it .*500"):
        read_summary(f"{server.url}/train")
    assert server.count("shards.json") == 3


def test_a_server_that_refuses_says_where_credentials_come_from(server, impatient):
    server.fault = lambda *_: "403"
    with pytest.raises(
        DataError, match=r"the store refused it .*403.* Credentials come from the environment"
    ) as caught:
        read_summary(f"{server.url}/train")
    assert not isinstance(caught.value, NoShardsError)
    assert server.count("shards.json") == 1


def test_a_place_without_shards_is_no_place_that_failed(server):
    with pytest.raises(NoShardsError, match=r"it has no shards\.json"):
        read_summary(f"{server.url}/elsewhere")


def test_a_server_that_is_not_there_is_one_clear_error(corpus, impatient):
    with serve_files(corpus) as files:
        url = files.url
    with pytest.raises(DataError, match="the store did not give it") as caught:
        read_summary(f"{url}/train")
    assert "\n" not in str(caught.value)


# --- credentials --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"), [("500", "answered 500"), ("garbled", "no HTTP"), ("around", "without end"), ("403", "403")]
)
def test_headers_of_the_users_own_settings_go_along_and_are_nowhere_to_be_seen(
    server, cache_folder, monkeypatch, caplog, fault, reason
):
    # What FSSPEC_HTTP='{"headers": ...}' or a file in ~/.config/fsspec says.
    headers = {"Authorization": "Bearer open-sesame"}
    monkeypatch.setitem(fsspec.config.conf, "http", {"headers": headers})
    server.fault = in_shards(fault, 1)
    with caplog.at_level(logging.DEBUG):
        reader = open_reader(server)
        reader.read(0)
        with pytest.raises(UtteranceError, match=reason) as caught:
            reader.read(1)
    assert {sent.get("Authorization") for sent in server.headers} == {"Bearer open-sesame"}
    shown = caplog.text + "".join(traceback.format_exception(caught.value))
    assert "sesame" not in shown
    for path in cache_folder.rglob("*"):
        assert "sesame" not in path.name
        assert path.is_dir() or b"sesame" not in path.read_bytes()
