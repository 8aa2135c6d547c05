"""Shards in a store that speaks S3: moto's server, in a process of its own on loopback."""

import logging
import os
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest

from data.errors import DataError
from data.remote.settings import StorageConfig
from data.shards.index import NoShardsError, read_index, read_summary
from data.shards.reader import ShardReader, UtteranceError

pytest.importorskip("moto", reason="moto, of the extra test, serves S3 on loopback")
pytest.importorskip("s3fs", reason="s3fs, of the extra s3, reads it")

SECRET = "not-for-logs-7f3a"
START_S = 60


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """The URL of the server. It chooses its port, and says which in its log."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + START_S
        url = ""
        while not url:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
            for line in log.read_text().splitlines():
                if "Running on http://" in line:
                    url = line.rpartition(" ")[2].strip()
        urllib.request.urlopen(f"{url}/moto-api/", timeout=START_S).close()
        yield url
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(endpoint, corpus, cache_folder, monkeypatch):
    """The URL of a bucket with the split train. Where it is, and who asks, the environment says alone."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    if not files.exists("corpora"):
        files.mkdir("corpora")
        files.put(str(corpus / "train"), "corpora/phrases/train", recursive=True)
    # Instances of fsspec are kept with the credentials that they found.
    type(files).clear_instance_cache()
    yield "s3://corpora/phrases"
    type(files).clear_instance_cache()


def test_shards_in_a_bucket_read_like_local_ones_from_many_threads_and_are_kept(bucket, local, cache_folder):
    index = read_index(f"{bucket}/train")
    assert list(index.keys()) == [example.key for example in local]
    reader = ShardReader(index)
    with ThreadPoolExecutor(8) as pool:
        for example, expected in zip(pool.map(reader.read, range(len(local))), local, strict=True):
            assert (example.key, example.text) == (expected.key, expected.text)
            assert np.array_equal(example.waveform, expected.waveform)
    entries = [path for path in cache_folder.glob("??/*") if path.is_file()]
    assert len(entries) == len(local)


def test_what_is_broken_in_a_bucket_is_named_with_shard_key_and_offset(bucket, local):
    index = read_index(f"{bucket}/train")
    files = fsspec.filesystem("s3")
    gone, short, changed = (f"corpora/phrases/train/{index.names[shard]}" for shard in (0, 1, 2))
    contents = {path: files.cat_file(path) for path in (gone, short, changed)}
    first = {shard: int(np.flatnonzero(index.shard == shard)[0]) for shard in (0, 1, 2)}
    last_of_short = int(np.flatnonzero(index.shard == 1)[-1])
    middle = int(index.offset[first[2]] + index.size[first[2]] // 2)
    try:
        files.rm_file(gone)
        # The last utterance begins behind the end, which S3 answers with an error of its own.
        files.pipe_file(short, contents[short][: int(index.offset[last_of_short]) - 1])
        flipped = bytearray(contents[changed])
        flipped[middle] ^= 1
        files.pipe_file(changed, bytes(flipped))
        reader = ShardReader(index, StorageConfig(cache_gb=0), attempts=2, first_pause_s=0.01)
        for utterance, reason in (
            (first[0], "its shard is not there"),
            (last_of_short, "the shard gave 0 bytes where the index promises"),
            (first[2], "the file was changed"),
        ):
            with pytest.raises(UtteranceError, match=reason) as caught:
                reader.read(utterance)
            assert caught.value.key == local[utterance].key
            assert caught.value.offset == index.offset[utterance]
            assert caught.value.shard == f"{bucket}/train/{index.shard_name(utterance)}"
    finally:
        for path, content in contents.items():
            files.pipe_file(path, content)


def test_a_split_that_is_not_in_the_bucket_is_no_store_that_failed(bucket):
    with pytest.raises(NoShardsError, match=r"it has no shards\.json"):
        read_summary(f"{bucket}/dev")
    with pytest.raises(NoShardsError):
        read_summary("s3://no-such-bucket/train")


def test_without_credentials_the_error_says_where_they_come_from(bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match="Credentials come from the environment") as caught:
        read_summary(f"{bucket}/train")
    assert "\n" not in str(caught.value)


def test_credentials_are_in_no_log_no_error_and_no_cache(bucket, cache_folder, caplog):
    # What botocore says at this level are requests with their signatures, which are no secrets, and is not kept.
    with caplog.at_level(logging.INFO):
        index = read_index(f"{bucket}/train")
        ShardReader(index).read(0)
        with pytest.raises(DataError) as caught:
            read_summary(f"{bucket}/dev")
    assert SECRET not in caplog.text + str(caught.value)
    for path in cache_folder.rglob("*"):
        assert "tester" not in path.name
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()
