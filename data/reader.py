"""One utterance of a shard set by its position in the index: a range of bytes is read, nothing is scanned.

Shards lie in a local folder or behind a URL that fsspec opens (http, s3, ...). A read that fails is tried again with
growing pauses; an utterance that stays unreadable, or whose bytes are not what the index says, is a
`BrokenUtterance` that names shard, key and offset.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
import time
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import soundfile

from data.errors import DataError
from data.shard_index import ShardIndex

ATTEMPTS = 4
FIRST_PAUSE_S = 0.2

logger = logging.getLogger(__name__)


class BrokenUtterance(DataError):  # noqa: N818 - the name says what it is, as DataError is its family
    """An utterance that cannot be read, with its key."""

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


class ShardReader:
    """Reads utterances of one split in any order; safe to use from several threads.

    `first_pause_s` is the pause before the second attempt; each further one is four times as long.
    """

    def __init__(self, index: ShardIndex, *, attempts: int = ATTEMPTS, first_pause_s: float = FIRST_PAUSE_S):
        self.index = index
        self._attempts = attempts
        self._first_pause_s = first_pause_s

    def shard(self, utterance: int) -> str:
        """Path or URL of the shard that holds an utterance."""
        return f"{self.index.folder}/{self.index.names[self.index.shard[utterance]]}"

    def read(self, utterance: int) -> Example:
        """The utterance at a position of the index. BrokenUtterance when it cannot be had."""
        content = self._fetch(utterance)
        try:
            key, flac, label = _members(content)
            waveform, sample_rate_hz = soundfile.read(io.BytesIO(flac), dtype="float32")
            example = Example(key, waveform, label["text"], label["speaker"], label["language"])
        except (tarfile.TarError, EOFError, KeyError, ValueError, soundfile.SoundFileError) as error:
            raise self._broken(utterance, f"its bytes are not readable ({error!r})") from error
        promised = (int(self.index.samples[utterance]),), self.index.sample_rate_hz
        if (waveform.shape, sample_rate_hz) != promised:
            raise self._broken(
                utterance, f"it has shape {waveform.shape} at {sample_rate_hz} Hz, the index says {promised}"
            )
        return example

    @cached_property
    def _filesystem(self) -> Any:
        return fsspec.core.url_to_fs(str(self.index.folder))[0]

    def _fetch(self, utterance: int) -> bytes:
        shard = self.shard(utterance)
        offset, size = int(self.index.offset[utterance]), int(self.index.size[utterance])
        pause_s = self._first_pause_s
        for attempt in range(1, self._attempts + 1):
            try:
                return self._read_range(shard, offset, size)
            # Remote file systems raise errors of their own libraries; whatever it was, the next attempt tells.
            except Exception as error:
                if attempt == self._attempts or isinstance(error, FileNotFoundError):
                    raise self._broken(
                        utterance, f"{attempt} attempts to read it failed ({error!r})"
                    ) from error
                logger.warning("Reading %s failed (%r); trying again in %.1f s.", shard, error, pause_s)
                time.sleep(pause_s)
                pause_s *= 4
        raise AssertionError("the last attempt returns or raises")

    def _read_range(self, shard: str, offset: int, size: int) -> bytes:
        if "://" in shard:
            content = self._filesystem.cat_file(shard, start=offset, end=offset + size)
        else:
            with open(shard, "rb", buffering=0) as file:
                content = os.pread(file.fileno(), size, offset)
        if len(content) != size:
            raise OSError(f"{len(content)} of {size} bytes at offset {offset}")
        return content

    def _broken(self, utterance: int, seen: str) -> BrokenUtterance:
        key = next(islice(self.index.keys(), utterance, None))
        return BrokenUtterance(
            key,
            f"Utterance {key} at offset {self.index.offset[utterance]} of {self.shard(utterance)} is broken: {seen}. "
            "Check the shard set with `chorus shards verify`, and write or fetch this shard again.",
        )


def _members(content: bytes) -> tuple[str, bytes, dict[str, str]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore[reportOptionalMemberAccess]
    (audio_name,) = (name for name in members if name.endswith(".flac"))
    key = audio_name.removesuffix(".flac")
    return key, members[audio_name], json.loads(members[f"{key}.json"])
