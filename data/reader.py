"""One utterance of a split by its position in the index: a range of bytes is read, nothing is scanned.

Shards lie in a local folder or behind a URL that fsspec opens (http, s3, ...). A read that fails is tried
again with growing pauses; an utterance that stays unreadable, or whose bytes are not what the index says,
is an `UtteranceError` that names shard, key and offset. So is one that is larger than an utterance can be: nothing is
decoded before its header has been compared with the index.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import soundfile

from data.errors import DataError
from data.recordings import MAX_UTTERANCE_S
from data.shard_index import MAX_ROW_BYTES, TRANSCRIPTS, ShardIndex, check_url, is_url, parse_row, parse_texts
from data.tar_members import read_members

# The bytes of one utterance in a tar: an hour at 96 kHz and 16 bits. Its samples have the bound of recordings.
MAX_UTTERANCE_BYTES = 2**30
# KEY.flac and KEY.json, and what the latter says.
NUM_MEMBERS = 2
LABELS = ("text", "speaker", "language")
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
    """A range of bytes that cannot be read, or is not that of its index; the message says why, and not where."""


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
            check_url(str(folder))
            self._filesystem, _ = fsspec.url_to_fs(str(folder))

    def location(self, name: str) -> str:
        """Path or URL of a file."""
        return f"{self.folder}/{name}"

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of a file, from `offset` on. RangeError when they cannot be read, or are too many."""
        if size > MAX_UTTERANCE_BYTES:
            raise RangeError(f"it has {size} bytes, and an utterance has at most {MAX_UTTERANCE_BYTES}")
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
        # For messages alone, which are not to wait as long as the audio.
        self._transcripts = RangeReader(index.folder, attempts=1)
        self._line_starts: npt.NDArray[np.int64] | None = None
        self._line_starts_lock = threading.Lock()

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
            members = read_members(content, NUM_MEMBERS)
            # The index has no keys: the one of the utterance is that of its members.
            (flac_name,) = [name for name in members if name.endswith(".flac")]
            key = flac_name.removesuffix(".flac")
            label = parse_label(members[f"{key}.json"])
            waveform = self._decode(members[flac_name], utterance)
        except RangeError as error:
            raise self._broken(utterance, str(error)) from error
        except (KeyError, ValueError, soundfile.SoundFileError) as error:
            raise self._broken(utterance, f"its bytes are not readable ({error!r})") from error
        return Example(
            key=key,
            waveform=waveform,
            text=label["text"],
            speaker=label["speaker"],
            language=label["language"],
        )

    def _decode(self, flac: bytes, utterance: int) -> npt.NDArray[np.float32]:
        """The samples of a FLAC. RangeError when it is not the recording that the index promises."""
        expected_rate_hz = self.index.sample_rate_hz
        expected_samples = int(self.index.samples[utterance])
        max_samples = int(MAX_UTTERANCE_S * expected_rate_hz)
        if expected_samples > max_samples:
            raise RangeError(f"it has {expected_samples} samples, and an utterance has at most {max_samples}")
        if expected_samples == 0:
            raise RangeError("it holds no samples; preparing the corpus again leaves such recordings out")
        with soundfile.SoundFile(io.BytesIO(flac)) as file:
            # Before anything is decoded: an hour of silence takes few bytes, and a header may promise any length.
            if (file.frames, file.channels, file.samplerate) != (expected_samples, 1, expected_rate_hz):
                raise RangeError(
                    f"it holds {file.frames} samples of {file.channels} channels at {file.samplerate} Hz, "
                    f"the index promises {expected_samples} of one at {expected_rate_hz} Hz"
                )
            waveform = file.read(expected_samples, dtype="float32")
        if len(waveform) != expected_samples:
            raise RangeError(f"it ends after {len(waveform)} of {expected_samples} samples")
        return np.asarray(waveform, dtype=np.float32)

    def _broken(self, utterance: int, reason: str) -> UtteranceError:
        key = self._key(utterance)
        return UtteranceError(
            key,
            f"Utterance {key} at offset {self.index.offset[utterance]} of {self.shard(utterance)} is broken: "
            f"{reason}. Look at the split with `chorus shards verify`, then write or fetch this shard again.",
        )

    def _key(self, utterance: int) -> str:
        """The key of an utterance whose tar cannot be read, from its line in the transcripts.

        The lines are counted once, whatever the number of broken utterances: a lost shard has thousands.
        """
        try:
            with self._line_starts_lock:
                if self._line_starts is None:
                    self._line_starts = self.index.line_starts()
            start, stop = self._line_starts[utterance : utterance + 2].tolist()
            return parse_row(self._transcripts.read(TRANSCRIPTS, start, stop - start))["key"]
        # The transcripts are broken too: the others of the split may still be sound.
        except (DataError, RangeError, ValueError):
            return f"number {utterance}"


def parse_label(content: bytes) -> dict[str, str]:
    """Text, speaker and language in the JSON of an utterance. ValueError when it has them not, or is too long."""
    if len(content) > MAX_ROW_BYTES:
        raise ValueError(f"its JSON has {len(content)} bytes, more than {MAX_ROW_BYTES}")
    return parse_texts(content, LABELS)
