"""One utterance of a split by its position in the index: a range of bytes is read, nothing is scanned.

Shards lie in a folder, of a file server too, or behind a URL (data/remote). A read that fails is tried again with
growing pauses, until it has failed for too long; bytes that are not those of the index are read a second time. An
utterance that stays unreadable is an `UtteranceError` that names shard, key, offset and reason. So is one that is
larger than an utterance can be: nothing is decoded before its header has been compared with the index.

What a remote store gave is kept on this host (data/remote/cache.py). Where a web server knows no ranges, a whole shard
is fetched once, or read past where there is no room for it.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from data.containers.tar_members import read_members
from data.errors import DataError
from data.files import regular_descriptor
from data.recordings import MAX_UTTERANCE_S
from data.remote.cache import RangeCache, cache_name
from data.remote.remote_file import read_pieces
from data.remote.retrying import RetryPolicy
from data.remote.settings import StorageConfig, cache_folder
from data.remote.stores import NoRangesError, open_store
from data.shards.index import MAX_ROW_BYTES, TRANSCRIPTS, ShardIndex, is_url, parse_row, parse_texts

# The bytes of one utterance in a tar: an hour at 96 kHz and 16 bits. Its samples have the bound of recordings.
MAX_UTTERANCE_BYTES = 2**30
# Of those, a sample takes four at most; the rest is text, headers of the tar and metadata of the FLAC.
MAX_SAMPLE_BYTES = 4
MAX_OTHER_BYTES = 3 * 2**20
# KEY.flac and KEY.json, and what the latter says.
NUM_MEMBERS = 2
LABELS = ("text", "speaker", "language")
# URLs whose files are near: in this process, or on this machine.
LOCAL_URLS = ("memory://", "file://")
# Of a whole file: what fails is tried again by whoever asked for a part of it.
SINGLE_ATTEMPT = RetryPolicy(attempts=1)

logger = logging.getLogger(__name__)


class UtteranceError(DataError):
    """An utterance that cannot be used, with its key; the others of its split may be sound.

    `shard` is the place of its tar, `offset` where it begins there, `reason` what is wrong.
    """

    def __init__(self, key: str, message: str, *, shard: str = "", offset: int = 0, reason: str = ""):
        super().__init__(message)
        self.key = key
        self.shard = shard
        self.offset = offset
        self.reason = reason or message


@dataclass(frozen=True)
class Example:
    """One utterance: mono float32 waveform [S] at the rate of its index, its transcript, speaker and language."""

    key: str
    waveform: npt.NDArray[np.float32]
    text: str
    speaker: str
    language: str


@dataclass(frozen=True)
class EncodedExample:
    """One utterance as its tar holds it, compared with the checksum of the index."""

    key: str
    flac: bytes
    label: dict[str, str]


class RangeError(Exception):
    """A range of bytes that cannot be read, or is not that of its index; the message says why, and not where."""


class ChangedError(ValueError):
    """Members that are sound as such, and not those that were written."""


class RangeReader:
    """Ranges of bytes of the files in a folder, or behind a URL; safe to use from several threads.

    A read that fails is tried again for `storage.retry_s` seconds, or `attempts` times where these are given. With
    `identity`, which is another one when the files are others, what is remote is kept on this host.
    """

    def __init__(
        self,
        folder: Path | str,
        storage: StorageConfig | None = None,
        *,
        identity: str = "",
        attempts: int | None = None,
        first_pause_s: float = 0.5,
    ):
        self.folder = folder
        self.is_remote = is_url(folder) and not str(folder).startswith(LOCAL_URLS)
        self._identity = identity
        storage = storage or StorageConfig()
        self._policy = RetryPolicy(storage.retry_s, first_pause_s, attempts)
        self._store = None
        self._cache = None
        if is_url(folder):
            self._store = open_store(str(folder))
            if self.is_remote and identity and storage.cache_bytes:
                self._cache = RangeCache(cache_folder(), storage.cache_bytes)
        # A web server that gave a whole file for a range is not asked for a range again.
        self._gives_ranges = True
        # Files of which a read failed to the end: each further one would wait as long.
        self._failed_files: set[str] = set()
        # Whole files that are not those of the index.
        self._changed_files: set[str] = set()

    def location(self, name: str) -> str:
        """Path or URL of a file."""
        return f"{self.folder}/{name}"

    def read(self, name: str, offset: int, size: int, *, whole_file: tuple[int, str] | None = None) -> bytes:
        """Exactly `size` bytes of a file, from `offset` on. RangeError when they cannot be read, or are too many.

        `whole_file`, length and SHA-256 of the file, allows to keep all of it where there are no ranges to be had.
        """
        if size > MAX_UTTERANCE_BYTES:
            raise RangeError(f"it has {size} bytes, and an utterance has at most {MAX_UTTERANCE_BYTES}")
        entry = ""
        if self._cache is not None:
            entry = cache_name(self.location(name), self._identity, offset, size)
            content = self._cache.get(entry)
            if content is not None and len(content) == size:
                return content

        content, is_kept = self._read_retrying(name, offset, size, whole_file)
        if len(content) != size:
            raise RangeError(f"the shard gave {len(content)} bytes where the index promises {size}")
        if self._cache is not None and not is_kept:
            self._cache.put(entry, content)
        return content

    def forget(self, name: str, offset: int, size: int) -> None:
        """Read a range anew the next time: what was kept of it is not what it should be."""
        if self._cache is not None:
            self._cache.drop(cache_name(self.location(name), self._identity, offset, size))

    def _read_retrying(
        self,
        name: str,
        offset: int,
        size: int,
        whole_file: tuple[int, str] | None,
    ) -> tuple[bytes, bool]:
        """The bytes of a range, and whether the whole file is kept on this host."""
        location = self.location(name)
        retries = self._policy.begin()
        while True:
            try:
                if self._gives_ranges:
                    content = self._read_once(location, offset, size)
                    is_kept = False
                else:
                    content, is_kept = self._read_whole(name, offset, size, whole_file)
            except NoRangesError:
                logger.info("%s gives no ranges: whole shards are fetched.", self.folder)
                self._gives_ranges = False
            except FileNotFoundError as error:
                raise RangeError("its shard is not there") from error
            # Every remote file system raises errors of its own.
            except Exception as error:
                if name not in self._failed_files and retries.can_retry(location, error):
                    continue
                self._failed_files.add(name)
                attempts = "1 attempt" if retries.failures < 2 else f"{retries.failures} attempts"
                raise RangeError(f"it could not be read in {attempts} ({error!r:.300})") from error
            else:
                self._failed_files.discard(name)
                return content, is_kept

    def _read_once(self, location: str, offset: int, size: int) -> bytes:
        if self._store is not None:
            return self._store.read_range(location, offset, size)
        # Opened for each read, and without a buffer: threads share no position, and nothing beyond the range is read.
        descriptor = regular_descriptor(location)
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def _read_whole(
        self,
        name: str,
        offset: int,
        size: int,
        whole_file: tuple[int, str] | None,
    ) -> tuple[bytes, bool]:
        """A range out of a whole file, and whether the file is kept: it is where there is room for it."""
        assert self._store is not None, "a folder has ranges"
        location = self.location(name)
        if self._cache is not None and whole_file is not None and name not in self._changed_files:
            num_bytes, sha256 = whole_file
            entry = cache_name(location, self._identity)
            with self._cache.alone(entry):
                descriptor = self._cache.open_file(entry)
                if descriptor is None:
                    pieces = read_pieces(self._store, location, SINGLE_ATTEMPT)
                    try:
                        self._cache.put_file(entry, pieces, num_bytes, sha256)
                    except ValueError as error:
                        # Not kept, so that a mended one is noticed; its utterances are looked at one by one.
                        logger.warning("%s is not what shards.json says: %s.", location, error)
                        self._changed_files.add(name)
                    descriptor = self._cache.open_file(entry)
            if descriptor is not None:
                try:
                    return os.pread(descriptor, size, offset), True
                finally:
                    os.close(descriptor)

        content = bytearray()
        position = 0
        for piece in read_pieces(self._store, location, SINGLE_ATTEMPT):
            first = max(0, offset - position)
            last = max(0, offset + size - position)
            content += piece[first:last]
            position += len(piece)
            if position >= offset + size:
                break
        return bytes(content), False


class ShardReader:
    """Reads utterances of one split in any order; safe to use from several threads. `storage`, `attempts` and
    `first_pause_s` are those of `RangeReader`."""

    def __init__(
        self,
        index: ShardIndex,
        storage: StorageConfig | None = None,
        *,
        attempts: int | None = None,
        first_pause_s: float = 0.5,
    ):
        self.index = index
        storage = storage or StorageConfig()
        self._connections = storage.connections
        self.ranges = RangeReader(
            index.folder,
            storage,
            identity=index.fingerprint,
            attempts=attempts,
            first_pause_s=first_pause_s,
        )
        # For messages alone, which are not to wait as long as the audio.
        self._transcripts = RangeReader(index.folder, attempts=1)
        self._line_starts: npt.NDArray[np.int64] | None = None
        self._line_starts_lock = threading.Lock()

    @property
    def connections(self) -> int:
        """How many utterances to request at once of a remote store; 0 where reads wait for no other machine."""
        if self.ranges.is_remote:
            return self._connections
        return 0

    def shard(self, utterance: int) -> str:
        """Path or URL of the shard that holds an utterance."""
        return self.ranges.location(self.index.shard_name(utterance))

    def read(self, utterance: int) -> Example:
        """The utterance at a position of the index. UtteranceError when it cannot be read."""
        return self.decode(utterance, self.fetch(utterance))

    def fetch(self, utterance: int) -> EncodedExample:
        """The utterance at a position of the index, not decoded. UtteranceError when it cannot be read."""
        index = self.index
        name = index.shard_name(utterance)
        offset = int(index.offset[utterance])
        size = int(index.size[utterance])
        whole_file = None
        if index.sha256:
            shard = int(index.shard[utterance])
            whole_file = (index.shard_bytes[shard], index.sha256[shard])
        try:
            # As many threads may read as many at once: what is not announced as audio is not read.
            max_bytes = MAX_SAMPLE_BYTES * int(index.samples[utterance]) + MAX_OTHER_BYTES
            if size > max_bytes:
                raise RangeError(
                    f"it has {size} bytes, and {index.samples[utterance]} samples take {max_bytes} at most"
                )
            content = self.ranges.read(name, offset, size, whole_file=whole_file)
            try:
                return self._parse(utterance, content)
            except (KeyError, ValueError):
                # What a network or a cache changed is sound the second time, and what the shard holds is not.
                self.ranges.forget(name, offset, size)
                return self._parse(utterance, self.ranges.read(name, offset, size, whole_file=whole_file))
        except RangeError as error:
            raise self.broken(utterance, str(error)) from error
        except ChangedError as error:
            self.ranges.forget(name, offset, size)
            raise self.broken(utterance, str(error)) from error
        except (KeyError, ValueError) as error:
            self.ranges.forget(name, offset, size)
            raise self.broken(utterance, f"its bytes are not readable ({error!r:.300})") from error

    def decode(self, utterance: int, encoded: EncodedExample) -> Example:
        """The utterance that was fetched. UtteranceError when it is not the one that the index promises."""
        try:
            text = encoded.label["text"]
            num_characters = int(self.index.text_length[utterance])
            if len(text) != num_characters:
                raise RangeError(f"its text has {len(text)} characters, the index promises {num_characters}")
            waveform = self._decode(encoded.flac, utterance)
        except RangeError as error:
            raise self.broken(utterance, str(error), encoded.key) from error
        except soundfile.SoundFileError as error:
            raise self.broken(utterance, undecodable(error), encoded.key) from error
        except ValueError as error:
            raise self.broken(utterance, f"its bytes are not readable ({error!r:.300})", encoded.key) from error
        return Example(
            key=encoded.key,
            waveform=waveform,
            text=text,
            speaker=encoded.label["speaker"],
            language=encoded.label["language"],
        )

    def broken(self, utterance: int, reason: str, key: str | None = None) -> UtteranceError:
        """The error of an utterance that cannot be used, for a reason; its key is looked up where it is not given."""
        if key is None:
            key = self._key(utterance)
        shard = self.shard(utterance)
        offset = int(self.index.offset[utterance])
        return UtteranceError(
            key,
            f"Utterance {key} at offset {offset} of {shard} is broken: {reason}. Look at the split with `chorus shards "
            "verify`, then write or fetch this shard again.",
            shard=shard,
            offset=offset,
            reason=reason,
        )

    def _parse(self, utterance: int, content: bytes) -> EncodedExample:
        """The members of an utterance. ValueError or KeyError when they are none, or not those that were written."""
        members = read_members(content, NUM_MEMBERS)
        # The index has no keys: the one of the utterance is that of its members.
        (flac_name,) = [name for name in members if name.endswith(".flac")]
        key = flac_name.removesuffix(".flac")
        flac = members[flac_name]
        label = members[f"{key}.json"]
        if self.index.crc32 is not None:
            expected = int(self.index.crc32[utterance])
            crc32 = zlib.crc32(label, zlib.crc32(flac))
            if crc32 != expected:
                raise ChangedError(f"its CRC-32 is {crc32:08x}, the index has {expected:08x}: the file was changed")
        return EncodedExample(key, flac, parse_label(label))

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
            # libsndfile reads whatever it knows. A FLAC has whole numbers, and a WAV may have some that are none.
            if file.format != "FLAC":
                raise RangeError(f"it is a {file.format} under the name of a FLAC")
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

    def _key(self, utterance: int) -> str:
        """The key of an utterance whose tar cannot be read, from its line in the transcripts.

        The lines are counted once, whatever the number of broken utterances: a lost shard has thousands.
        """
        try:
            with self._line_starts_lock:
                if self._line_starts is None:
                    # Looked for once: where a store is lost, each search would take as long as its retries.
                    self._line_starts = np.zeros(0, np.int64)
                    self._line_starts = self.index.line_starts()
            start, stop = self._line_starts[utterance : utterance + 2].tolist()
            return parse_row(self._transcripts.read(TRANSCRIPTS, start, stop - start))["key"]
        # The transcripts are broken too: the others of the split may still be sound.
        except (DataError, RangeError, ValueError):
            return f"number {utterance}"


def undecodable(error: soundfile.SoundFileError) -> str:
    """Why libsndfile could not decode an utterance, in its own words."""
    seen = str(error)
    # Its text alone names the object that was to be read, by its address; of a damaged frame it has no words at all.
    if isinstance(error, soundfile.LibsndfileError):
        seen = error.error_string.rstrip(".") or f"error {error.code}"
    return f"its audio cannot be decoded (libsndfile: {seen})"


def parse_label(content: bytes) -> dict[str, str]:
    """Text, speaker and language in the JSON of an utterance. ValueError when it has them not, or is too long."""
    if len(content) > MAX_ROW_BYTES:
        raise ValueError(f"its JSON has {len(content)} bytes, more than {MAX_ROW_BYTES}")
    return parse_texts(content, LABELS)
