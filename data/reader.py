"""One utterance of a split by its position in the index: a range of bytes is read, nothing is scanned.

Shards lie in a local folder or behind a URL that fsspec opens (http, s3, ...). A read that fails is tried
again with growing pauses; an utterance that stays unreadable, or whose bytes are not what the index says,
is an `UtteranceError` that names shard, key and offset.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import soundfile

from data.errors import DataError
from data.shard_index import ShardIndex, is_url

# Each pause is this many times the one before: a storage that restarts is given seconds, not milliseconds.
PAUSE_GROWTH = 4

logger = logging.getLogger(__name__)


class UtteranceError(DataError):
    """An utterance that cannot be read, with its key; the others of its split may be sound."""

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Example:
    """One utterance: mono float32 waveform [S] at the rate of its index, its transcript, speaker and language."""

    key: str
    waveform: npt.NDArray[np.float32]
    text: str
    speaker: str
    language: str


class RangeError(Exception):
    """A range of bytes that cannot be read; the message says why, and not where."""


class RangeReader:
    """Ranges of bytes of the files in a folder, or behind a URL that fsspec opens; safe to use from several threads.

    A read is tried `attempts` times; the first pause is `first_pause_s`, each further one four times as long.
    """

    def __init__(self, folder: Path | str, *, attempts: int = 4, first_pause_s: float = 0.2):
        self.folder = folder
        self._attempts = attempts
        self._first_pause_s = first_pause_s
        self._filesystem: Any = None
        if is_url(folder):
            self._filesystem, _ = fsspec.url_to_fs(str(folder))

    def location(self, name: str) -> str:
        """Path or URL of a file."""
        return f"{self.folder}/{name}"

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of a file, from `offset` on. RangeError when they cannot be read."""
        location = self.location(name)
        pause_s = self._first_pause_s
        for attempt in range(1, self._attempts + 1):
            try:
                content = self._read_once(location, offset, size)
            # Another attempt would not bring it back.
            except FileNotFoundError as error:
                raise RangeError("its shard is not there") from error
            # Every remote file system raises errors of its own.
            except Exception as error:
                if attempt == self._attempts:
                    raise RangeError(f"it could not be read in {attempt} attempts ({error!r})") from error
                logger.warning("Reading %s failed (%r); next attempt in %.1f s.", location, error, pause_s)
                time.sleep(pause_s)
                pause_s *= PAUSE_GROWTH
            else:
                if len(content) != size:
                    raise RangeError(f"the shard gave {len(content)} bytes where the index promises {size}")
                return content
        raise AssertionError("the last attempt returns or raises")

    def _read_once(self, location: str, offset: int, size: int) -> bytes:
        if self._filesystem is not None:
            return self._filesystem.cat_file(location, start=offset, end=offset + size)
        # Opened for each read, and without a buffer: threads share no position, and nothing beyond the range is read.
        with open(location, "rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)


class ShardReader:
    """Reads utterances of one split in any order; safe to use from several threads. `retries` are those of
    `RangeReader`."""

    def __init__(self, index: ShardIndex, **retries: Any):
        self.index = index
        self.ranges = RangeReader(index.folder, **retries)

    def shard(self, utterance: int) -> str:
        """Path or URL of the shard that holds an utterance."""
        return self.ranges.location(self.index.shard_name(utterance))

    def read(self, utterance: int) -> Example:
        """The utterance at a position of the index. UtteranceError when it cannot be read."""
        index = self.index
        offset = int(index.offset[utterance])
        size = int(index.size[utterance])
        try:
            content = self.ranges.read(index.shard_name(utterance), offset, size)
        except RangeError as error:
            raise self._broken(utterance, str(error)) from error

        try:
            members = read_members(content)
            # The index has no keys: the one of the utterance is that of its members.
            (flac_name,) = [name for name in members if name.endswith(".flac")]
            key = flac_name.removesuffix(".flac")
            label = json.loads(members[f"{key}.json"])
            audio, sample_rate_hz = soundfile.read(io.BytesIO(members[flac_name]), dtype="float32")
            waveform = np.asarray(audio, dtype=np.float32)
            example = Example(
                key=key,
                waveform=waveform,
                text=label["text"],
                speaker=label["speaker"],
                language=label["language"],
            )
        except (tarfile.TarError, EOFError, KeyError, TypeError, ValueError, soundfile.SoundFileError) as error:
            raise self._broken(utterance, f"its bytes are not readable ({error!r})") from error

        # Whole and readable, but of another writing than the index.
        expected_shape = (int(index.samples[utterance]),)
        if waveform.shape != expected_shape or sample_rate_hz != index.sample_rate_hz:
            raise self._broken(
                utterance,
                f"it holds {waveform.shape} samples at {sample_rate_hz} Hz, "
                f"the index promises {expected_shape} at {index.sample_rate_hz} Hz",
            )
        return example

    def _broken(self, utterance: int, reason: str) -> UtteranceError:
        # The index in memory has no keys: they are looked up in transcripts.jsonl for the message alone.
        key = next(islice(self.index.keys(), utterance, None))
        return UtteranceError(
            key,
            f"Utterance {key} at offset {self.index.offset[utterance]} of {self.shard(utterance)} is broken: "
            f"{reason}. Look at the split with `chorus shards verify`, then write or fetch this shard again.",
        )


def read_members(content: bytes) -> dict[str, bytes]:
    """The members in a range of a tar, by name. Raises what tarfile raises for bytes that are no members."""
    members: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            members[member.name] = file.read() if file else b""
    return members
