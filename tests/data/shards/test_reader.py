"""Utterances read from shards by their byte range."""

import errno
import logging
import os
import shutil
from dataclasses import replace

import fsspec
import numpy as np
import pytest
from damage import change_byte
from paths import ROOT
from phrases import phrase_utterances

from data.audio import read_audio
from data.errors import DataError
from data.shards.reader import ShardReader, UtteranceError
from data.shards.writer import read_index, write_split


@pytest.fixture
def split(tmp_path):
    write_split(phrase_utterances(12), tmp_path / "train", sample_rate_hz=16000, shard_seconds=10, seed=1)
    return tmp_path / "train"


def quick(index):
    return ShardReader(index, attempts=3, first_pause_s=0.01)


def test_every_utterance_is_the_recording_that_was_written(split):
    index = read_index(split)
    reader = ShardReader(index)
    written = {utterance.key: utterance for utterance in phrase_utterances(12)}
    examples = [reader.read(number) for number in reversed(range(len(index)))]
    assert [example.key for example in reversed(examples)] == list(index.keys())
    for example in examples:
        utterance = written[example.key]
        assert (example.text, example.speaker, example.language) == (utterance.text, "narrator", "ru")
        assert example.waveform.dtype == np.float32
        # Shards hold 16 bit: half a step of rounding, a whole one where the loudest are clipped.
        np.testing.assert_allclose(example.waveform, read_audio(utterance, 16000), atol=1 / 2**15)


def test_shards_behind_a_url_read_like_local_ones(split):
    files = fsspec.filesystem("memory")
    files.put(str(split), "/bucket/train", recursive=True)
    try:
        remote = ShardReader(read_index("memory://bucket/train"))
        local = ShardReader(read_index(split))
        for number in range(len(local.index)):
            assert np.array_equal(remote.read(number).waveform, local.read(number).waveform)
            assert remote.read(number).key == local.read(number).key
    finally:
        files.rm("/bucket", recursive=True)


FROZEN = ROOT / "tests" / "fixtures" / "splits" / "without-checksums"


def test_a_split_that_was_written_before_there_were_checksums_reads_as_ever(tmp_path):
    index = read_index(FROZEN)
    assert index.crc32 is None
    assert index.fingerprint == "62b8e4257fcb4514cc7d5f6012358b158440ab04aac488aed70686b614b2f130"
    reader = ShardReader(index)
    by_key = {example.key: example for example in map(reader.read, range(2))}
    assert {key: example.text for key, example in by_key.items()} == {"tone-0": "low tone", "tone-1": "high tone"}
    assert [len(by_key[key].waveform) for key in ("tone-0", "tone-1")] == [2400, 3200]
    # Damage is named, as far as it shows.
    shutil.copytree(FROZEN, tmp_path / "train")
    change_byte(tmp_path / "train", 0, int(index.size[0]) // 2)
    with pytest.raises(UtteranceError, match="is broken"):
        ShardReader(read_index(tmp_path / "train")).read(0)


# --- what is broken -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flipped byte", "zeroed header", "truncated", "missing"])
def test_damage_is_named_with_shard_key_and_offset_and_the_others_stay_readable(split, kind):
    index = read_index(split)
    broken = len(index) - 1
    shard = split / index.names[index.shard[broken]]
    offset = int(index.offset[broken])
    size = int(index.size[broken])
    if kind == "missing":
        shard.unlink()
    elif kind == "truncated":
        shard.write_bytes(shard.read_bytes()[: offset + size // 2])
    else:
        content = bytearray(shard.read_bytes())
        if kind == "flipped byte":
            content[offset + size // 2] ^= 0x10
        else:
            content[offset : offset + 512] = bytes(512)
        shard.write_bytes(content)
    key = list(index.keys())[broken]
    with pytest.raises(UtteranceError, match=rf"{key} at offset {offset} of .*{shard.name} is broken") as caught:
        quick(index).read(broken)
    assert isinstance(caught.value, DataError)
    assert caught.value.key == key
    assert quick(index).read(0).key == next(index.keys())


def test_an_index_that_disagrees_with_the_audio_is_told_with_both_numbers(split):
    index = read_index(split)
    wrong = replace(index, samples=index.samples + 1)
    with pytest.raises(UtteranceError, match=rf"{index.samples[0]} samples .*promises {index.samples[0] + 1} "):
        quick(wrong).read(0)


def test_a_read_that_fails_for_a_while_is_tried_again_and_logged(split, monkeypatch, caplog):
    reader = quick(read_index(split))
    read_once = reader.ranges._read_once
    failures = [OSError("stale handle"), TimeoutError("no answer")]
    monkeypatch.setattr(reader.ranges, "_read_once", lambda *range: _fail_or(failures, lambda: read_once(*range)))
    with caplog.at_level(logging.WARNING):
        assert reader.read(3).key == list(reader.index.keys())[3]
    assert "stale handle" in caplog.text
    assert "no answer" in caplog.text


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EAGAIN])
def test_what_a_file_server_says_while_it_restarts_is_tried_again(split, monkeypatch, number):
    reader = quick(read_index(split))
    read_once = reader.ranges._read_once
    failures = [OSError(number, os.strerror(number))]
    monkeypatch.setattr(reader.ranges, "_read_once", lambda *range: _fail_or(failures, lambda: read_once(*range)))
    assert reader.read(3)
    assert failures == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EISDIR, errno.EPERM, errno.ENOENT, errno.ELOOP])
def test_what_would_fail_again_is_tried_once(split, monkeypatch, number):
    reader = quick(read_index(split))
    failures = [OSError(number, os.strerror(number)) for _ in range(3)]
    monkeypatch.setattr(reader.ranges, "_read_once", lambda *_: _fail_or(failures, bytes))
    with pytest.raises(UtteranceError):
        reader.read(3)
    assert len(failures) == 2


def test_a_read_that_keeps_failing_is_given_up_after_the_attempts(split, monkeypatch):
    reader = quick(read_index(split))
    failures = [OSError("gone") for _ in range(9)]
    monkeypatch.setattr(reader.ranges, "_read_once", lambda *_: _fail_or(failures, bytes))
    with pytest.raises(UtteranceError, match=r"could not be read in 3 attempts .*gone"):
        reader.read(0)
    assert len(failures) == 6


def _fail_or(failures, then):
    if failures:
        raise failures.pop(0)
    return then()
