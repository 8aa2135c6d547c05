"""What was computed beforehand for each utterance of a split: arrays per speed factor, in tars beside its shards.

A folder of sidecars holds one WebDataset tar per shard, of the shard's name and with its keys: an utterance KEY has a
member `KEY.speed-F.npz` for each speed factor F. `index.npz` says where each of them lies, so that it is read by its
range of bytes, as the audio is; an npz carries checksums, so bytes that changed are found.

A tar is written under another name, flushed and renamed, and then recorded in a file of its own; when all are there,
the records become `index.npz`. What a kill leaves is taken up by writing the shards that are `missing`. Refused, with a
`DataError`: sidecars that are not finished, and tars that are not those of their index.
"""

from __future__ import annotations

import io
import logging
import os
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.reader import RangeError, RangeReader, UtteranceError
from data.shard_index import ShardIndex

Arrays = dict[str, np.ndarray]

logger = logging.getLogger(__name__)

INDEX = "index.npz"
# What numpy and tarfile raise for bytes that are not what was written.
BROKEN = (tarfile.TarError, EOFError, KeyError, ValueError, OSError, zipfile.BadZipFile, zlib.error)


class SidecarReader:
    """Reads the sidecars of a split's utterances in any order; safe to use from several threads.

    `offset`, `size` int64 [N, speeds] are the bytes of each member, its header included; a size of 0 says that there is
    none. `retries` are those of `RangeReader`.
    """

    def __init__(
        self,
        split: ShardIndex,
        folder: Path,
        speeds: Sequence[float],
        offset: npt.NDArray[np.int64],
        size: npt.NDArray[np.int64],
        **retries: Any,
    ):
        self.split, self.speeds, self.offset, self.size = split, tuple(speeds), offset, size
        self.ranges = RangeReader(folder, **retries)
        self._column = {np.float32(speed): column for column, speed in enumerate(speeds)}

    def read(self, utterance: int, speed: float, key: str) -> Arrays:
        """The arrays of the utterance at that position, which has that key, at one of the speeds. UtteranceError when
        they cannot be had."""
        column = self._column[np.float32(speed)]
        name = self.split.names[self.split.shard[utterance]]
        offset, size = int(self.offset[utterance, column]), int(self.size[utterance, column])
        try:
            if not size:
                raise RangeError("it was left out when the others were written")
            return _arrays(self.ranges.read(name, offset, size), key)
        except (RangeError, *BROKEN) as error:
            seen = error if isinstance(error, RangeError) else f"its bytes are not readable ({error!r})"
            raise UtteranceError(
                key,
                f"What was computed for utterance {key} at speed {speed:g}, at offset {offset} of "
                f"{self.ranges.place(name)}, is broken: {seen}.",
            ) from error


def _arrays(content: bytes, key: str) -> Arrays:
    """The arrays of the one member in a range of a tar."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        member = tar.next()
        file = tar.extractfile(member) if member else None
        if member is None or file is None:
            raise ValueError("there is no member")
        if member.name.partition(".speed-")[0] != key:
            raise ValueError(f"they are those of {member.name}")
        with np.load(io.BytesIO(file.read()), allow_pickle=False) as stored:
            return dict(stored)


def find_damage(folder: Path, shards: Sequence[str]) -> str:
    """What is missing of the sidecars of these shards, as far as sizes tell; empty when nothing is."""
    index = _read_npz(folder / INDEX)
    if index is None or len(index["bytes"]) != len(shards):
        written = sum((folder / f"{name}.npz").is_file() for name in shards)
        return f"it is not finished, {written} of {len(shards)} shards are written"
    for name, promised in zip(shards, index["bytes"], strict=True):
        found = _file_bytes(folder / name)
        if found != promised:
            return f"{name} should have {promised} bytes and has {found}"
    return ""


def open_sidecars(folder: Path, split: ShardIndex, **retries: Any) -> SidecarReader:
    """The finished sidecars of a split's utterances. DataError when they are not whole."""
    damage, index = find_damage(folder, split.names), _read_npz(folder / INDEX)
    if damage or index is None:
        raise DataError(f"{folder} cannot be read: {damage}. Write it again.")
    return SidecarReader(split, folder, index["speeds"].tolist(), index["offset"], index["size"], **retries)


def find_broken(reader: SidecarReader) -> list[int]:
    """Read everything; the shards that hold something that cannot be read."""
    broken = set()
    for utterance, key in enumerate(reader.split.keys()):
        for column, speed in enumerate(reader.speeds):
            if reader.size[utterance, column]:
                try:
                    reader.read(utterance, speed, key)
                except UtteranceError as error:
                    logger.warning("%s", error)
                    broken.add(int(reader.split.shard[utterance]))
    return sorted(broken)


class SidecarWriter:
    """Writes the sidecars of a split at some speeds, shard after shard, in any order."""

    def __init__(self, split: ShardIndex, folder: Path, speeds: Sequence[float]):
        self.split, self.folder, self.speeds = split, folder, tuple(speeds)
        self._starts = np.searchsorted(split.shard, np.arange(len(split.names) + 1))

    def utterances(self, shard: int) -> range:
        """The positions of a shard's utterances in the index of the split."""
        return range(int(self._starts[shard]), int(self._starts[shard + 1]))

    def missing(self) -> list[int]:
        """The shards whose tars are not there or not whole; none when all are finished."""
        index = _read_npz(self.folder / INDEX)
        sizes = dict(enumerate(index["bytes"])) if index else {}
        missing = []
        for shard, name in enumerate(self.split.names):
            record = None if index else _read_npz(self._record(shard))
            promised = sizes.get(shard) if index else record and int(record["bytes"])
            if promised is None or _file_bytes(self.folder / name) != promised:
                missing.append(shard)
        return missing

    def write(self, shard: int, keys: Sequence[str], members: Mapping[tuple[int, int], Arrays]) -> int:
        """Write a shard's tar from arrays by (place among the shard's utterances, place among the speeds); those that
        are not given are recorded as left out. Returns the tar's bytes. OSError when the disk refuses."""
        # Imported here because it imports torch: seconds for a command that only reads.
        from webdataset.writer import TarWriter

        self._reopen()
        name = self.split.names[shard]
        shape = (len(keys), len(self.speeds))
        offset, size = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        with temporary.open("wb") as file:
            fixed = {"user": "chorus", "group": "chorus", "mtime": 0, "compress": False}
            tar = TarWriter(file, **fixed)  # pyright: ignore[reportArgumentType]
            for place in sorted(members):
                row, column = place
                begins = offset[place] = tar.tarstream.offset
                content = io.BytesIO()
                np.savez(content, allow_pickle=False, **members[place])
                tar.write({"__key__": keys[row], f"speed-{self.speeds[column]:g}.npz": content.getvalue()})
                size[place] = tar.tarstream.offset - begins
            tar.close()
            file.flush()
            os.fsync(file.fileno())
        num_bytes = temporary.stat().st_size
        temporary.replace(self.folder / name)
        _write_npz(self._record(shard), offset=offset, size=size, bytes=np.array(num_bytes))
        return num_bytes

    def _reopen(self) -> None:
        """Where an index says that all is there, make records of it again: one shard is to be written anew."""
        index = _read_npz(self.folder / INDEX)
        if index is None:
            return
        for shard in range(len(self.split.names)):
            of = slice(*self._starts[shard : shard + 2])
            record = {"offset": index["offset"][of], "size": index["size"][of], "bytes": index["bytes"][shard]}
            _write_npz(self._record(shard), **record)
        (self.folder / INDEX).unlink()

    def finish(self) -> None:
        """Make one index of the records of all shards, where there is none yet."""
        if (self.folder / INDEX).is_file():
            return
        records = [_read_npz(self._record(shard)) for shard in range(len(self.split.names))]
        assert all(records), "every shard has been written"
        columns = {
            name: np.concatenate([np.atleast_1d(record[name]) for record in records if record])
            for name in ("offset", "size", "bytes")
        }
        _write_npz(self.folder / INDEX, speeds=np.array(self.speeds), **columns)
        for left in [*map(self._record, range(len(records))), *self.folder.glob(".*.tmp")]:
            left.unlink(missing_ok=True)

    def _record(self, shard: int) -> Path:
        return self.folder / f"{self.split.names[shard]}.npz"


def _file_bytes(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _read_npz(path: Path) -> Arrays | None:
    """The arrays of a file, None when it is not there or torn."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except BROKEN:
        return None


def _write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
