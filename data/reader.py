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

logger = logging.getLogger(__name__)


class UtteranceError(DataError):
    """An utterance that cannot be read, with its key; the others of its split may be sound."""

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Example:
    """One utterance: mono float32 waveform [S] at the rate of its index, and what was said by whom."""

    key: str
    waveform: npt.NDArray[np.float32]
    text: str
    speaker: str
    language: str


class RangeError(Exception):
    """A range of bytes that cannot be had; the message says why, and not where."""


class RangeReader:
    """Ranges of bytes of the files in a folder, or behind a URL that fsspec opens; safe to use from several threads.

    A read is tried `attempts` times; the first pause is `first_pause_s`, each further one four times as long.
    """

    def __init__(self, folder: Path | str, *, attempts: int = 4, first_pause_s: float = 0.2):
        self.folder = folder
        self._attempts = attempts
        self._first_pause_s = first_pause_s
        self._filesystem: Any = fsspec.url_to_fs(str(folder))[0] if is_url(folder) else None

    def place(self, name: str) -> str:
        """Path or URL of a file."""
        return f"{self.folder}/{name}"

    def read(self, name: str, offset: int, size: int) -> bytes:
        """So many bytes of a file, all of them. RangeError when they cannot be had."""
        pause_s = self._first_pause_s
        for attempt in range(1, self._attempts + 1):
            try:
                content = self._read_once(self.place(name), offset, size)
            except FileNotFoundError as error:
                raise RangeError("its shard is not there") from error
            # Every remote file system raises errors of its own.
            except Exception as error:
                if attempt == self._attempts:
                    raise RangeError(f"it could not be read in {attempt} attempts ({error!r})") from error
                logger.warning("Reading %s failed (%r); next attempt in %.1f s.", self.place(name), error, pause_s)
                time.sleep(pause_s)
                pause_s *= 4
            else:
                if len(content) != size:
                    raise RangeError(f"the shard gave {len(content)} bytes where the index promises {size}")
                return content
        raise AssertionError("the last attempt returns or raises")

    def _read_once(self, place: str, offset: int, size: int) -> bytes:
        if self._filesystem is not None:
            return self._filesystem.cat_file(place, start=offset, end=offset + size)
        with open(place, "rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)


class ShardReader:
    """Reads utterances of one split in any order; safe to use from several threads. `retries` are those of
    `RangeReader`."""

    def __init__(self, index: ShardIndex, **retries: Any):
        self.index = index
        self.ranges = RangeReader(index.folder, **retries)

    def shard(self, utterance: int) -> str:
        """Path or URL of the shard that holds an utterance."""
        return self.ranges.place(self._name(utterance))

    def _name(self, utterance: int) -> str:
        return self.index.names[self.index.shard[utterance]]

    def read(self, utterance: int) -> Example:
        """The utterance at a position of the index. UtteranceError when it cannot be had."""
        offset, size = int(self.index.offset[utterance]), int(self.index.size[utterance])
        try:
            content = self.ranges.read(self._name(utterance), offset, size)
        except RangeError as error:
            raise self._broken(utterance, str(error)) from error
        try:
            key, flac, label = _members(content)
            audio, sample_rate_hz = soundfile.read(io.BytesIO(flac), dtype="float32")
            waveform = np.asarray(audio, dtype=np.float32)
            example = Example(key, waveform, label["text"], label["speaker"], label["language"])
        except (
            tarfile.TarError,
            EOFError,
            KeyError,
            TypeError,
            ValueError,
            soundfile.SoundFileError,
        ) as error:
            raise self._broken(utterance, f"its bytes are not readable ({error!r})") from error
        promised = (int(self.index.samples[utterance]),), self.index.sample_rate_hz
        if (waveform.shape, sample_rate_hz) != promised:
            found = f"{waveform.shape} samples at {sample_rate_hz} Hz"
            raise self._broken(utterance, f"it holds {found}, the index promises {promised[0]} at {promised[1]} Hz")
        return example

    def _broken(self, utterance: int, seen: str) -> UtteranceError:
        key = next(islice(self.index.keys(), utterance, None))
        return UtteranceError(
            key,
            f"Utterance {key} at offset {self.index.offset[utterance]} of {self.shard(utterance)} is broken: "
            f"{seen}. Look at the split with `chorus shards verify`, then write or fetch this shard again.",
        )


def _members(content: bytes) -> tuple[str, bytes, dict[str, str]]:
    """Key, FLAC and label of the one utterance in a range of a tar."""
    members: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            members[member.name] = file.read() if file else b""
    (audio,) = (name for name in members if name.endswith(".flac"))
    key = audio.removesuffix(".flac")
    return key, members[audio], json.loads(members[f"{key}.json"])
