"""Precomputed arrays for each utterance of a split, per speed factor, in tars beside its shards.

A folder of sidecars holds one WebDataset tar per shard, of the shard's name and with its keys: an utterance KEY has a
member `KEY.speed-F.npz` for each speed factor F. `index.npz` says where each of them lies, so that it is read by its
range of bytes, as the audio is; an npz carries checksums, so changed bytes are detected.

Each tar is written whole or not at all, and then recorded in a file of its own; when all are there, the records become
`index.npz`. After a kill, the shards that are still `missing` are written and the others kept. Refused, with a
`DataError`: sidecars that are not finished, and tars that are not those of their index.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.containers.tar_members import read_members
from data.errors import DataError
from data.files import replacing
from data.npz import Arrays, load_arrays, read_npz, write_npz
from data.shards.index import ShardIndex
from data.shards.reader import RangeError, RangeReader, UtteranceError
from data.shards.writer import open_tar

logger = logging.getLogger(__name__)

INDEX = "index.npz"
# The arrays of the index and of a shard's record, and their dimensions.
INDEX_NAMES = {"speeds": 1, "offset": 2, "size": 2, "bytes": 1}
RECORD_NAMES = {"offset": 2, "size": 2, "bytes": 0}


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
        self.split = split
        self.speeds = tuple(speeds)
        self.offset = offset
        self.size = size
        self.ranges = RangeReader(folder, **retries)
        # Given by whoever knows what was stored: raises ValueError for arrays that were not. Tars may be a stranger's.
        self.check: Callable[[Arrays], None] | None = None
        # A sampler hands out speeds as float32.
        self._columns: dict[np.float32, int] = {}
        for column, speed in enumerate(speeds):
            self._columns[np.float32(speed)] = column

    def read(self, utterance: int, speed: float, key: str) -> Arrays:
        """The arrays of the utterance at that position of the index, whose key is `key`, at one of the speeds.

        UtteranceError when there are none or they cannot be read.
        """
        column = self._columns[np.float32(speed)]
        name = self.split.shard_name(utterance)
        offset = int(self.offset[utterance, column])
        size = int(self.size[utterance, column])
        try:
            # The recording could not be read when the sidecars were computed.
            if size == 0:
                raise RangeError("it was skipped when the others were written")
            members = read_members(self.ranges.read(name, offset, size), 1)
            ((member, content),) = members.items()
            # Tars of another split may be as long, and their members as sound.
            if member.partition(".speed-")[0] != key:
                raise ValueError(f"they are those of {member}")
            arrays = load_arrays(io.BytesIO(content))
            if self.check is not None:
                self.check(arrays)
            return arrays
        except (RangeError, OSError, KeyError, ValueError) as error:
            reason = f"its bytes are not readable ({error!r:.300})"
            if isinstance(error, RangeError):
                reason = str(error)
            raise UtteranceError(
                key,
                f"The sidecar of utterance {key} at speed {speed:g}, at offset {offset} of "
                f"{self.ranges.location(name)}, is broken: {reason}.",
            ) from error


def find_damage(folder: Path, shards: Sequence[str]) -> str:
    """What is missing of the sidecars of these shards, as far as sizes tell; empty when nothing is."""
    index = _read_arrays(folder / INDEX, INDEX_NAMES)
    if index is None or len(index["bytes"]) != len(shards):
        num_written = sum((folder / f"{name}.npz").is_file() for name in shards)
        return f"it is not finished, {num_written} of {len(shards)} shards are written"
    # By sizes alone, which takes no time; `find_broken` reads everything.
    for name, expected_bytes in zip(shards, index["bytes"], strict=True):
        num_bytes = _file_bytes(folder / name)
        if num_bytes != expected_bytes:
            return f"{name} should have {expected_bytes} bytes and has {num_bytes}"
    return ""


def open_sidecars(folder: Path, split: ShardIndex, **retries: Any) -> SidecarReader:
    """The finished sidecars of a split's utterances. DataError when they are not whole."""
    damage = find_damage(folder, split.names)
    index = _read_arrays(folder / INDEX, INDEX_NAMES)
    if not damage and index is not None:
        expected_shape = (len(split), len(index["speeds"]))
        if index["offset"].shape != expected_shape or index["size"].shape != expected_shape:
            damage = f"its index is of {len(index['offset'])} utterances, and the split has {len(split)}"
        elif index["offset"].min(initial=0) < 0 or index["size"].min(initial=0) < 0:
            damage = "its index points outside of its tars"
    if damage or index is None:
        raise DataError(f"{folder} cannot be read: {damage}. Write it again.")
    return SidecarReader(
        split,
        folder,
        speeds=index["speeds"].tolist(),
        offset=index["offset"],
        size=index["size"],
        **retries,
    )


def find_broken(reader: SidecarReader) -> list[int]:
    """Read everything; returns the shards that hold a member that cannot be read."""
    broken: set[int] = set()
    for utterance, key in enumerate(reader.split.keys()):
        for column, speed in enumerate(reader.speeds):
            if reader.size[utterance, column] == 0:
                continue
            try:
                reader.read(utterance, speed, key)
            except UtteranceError as error:
                logger.warning("%s", error)
                broken.add(int(reader.split.shard[utterance]))
    return sorted(broken)


class SidecarWriter:
    """Writes the sidecars of a split at some speeds, shard after shard, in any order."""

    def __init__(self, split: ShardIndex, folder: Path, speeds: Sequence[float]):
        self.split = split
        self.folder = folder
        self.speeds = tuple(speeds)
        # The index lists utterances shard after shard; the last entry is the end.
        shards = np.arange(len(split.names) + 1)
        self._starts = np.searchsorted(split.shard, shards)

    def utterances(self, shard: int) -> range:
        """The positions of a shard's utterances in the index of the split."""
        start = self._starts[shard]
        stop = self._starts[shard + 1]
        return range(int(start), int(stop))

    def missing(self) -> list[int]:
        """The shards whose tars are not there or not whole; none when all are finished."""
        index = _read_arrays(self.folder / INDEX, INDEX_NAMES)
        missing: list[int] = []
        for shard, name in enumerate(self.split.names):
            expected_bytes = None
            if index is not None:
                if shard < len(index["bytes"]):
                    expected_bytes = int(index["bytes"][shard])
            else:
                record = _read_arrays(self._record(shard), RECORD_NAMES)
                if record is not None:
                    expected_bytes = int(record["bytes"])
            if expected_bytes is None or _file_bytes(self.folder / name) != expected_bytes:
                missing.append(shard)
        return missing

    def write(self, shard: int, keys: Sequence[str], members: Mapping[tuple[int, int], Arrays]) -> int:
        """Write a shard's tar. OSError when the disk refuses.

        `keys` are those of the shard's utterances in order. `members` holds arrays by (position in `keys`, position in
        `speeds`); those that are not given are recorded as skipped. Returns the tar's bytes.
        """
        index = _read_arrays(self.folder / INDEX, INDEX_NAMES)
        if index is not None:
            # All is finished, and one shard is to be written anew: the index becomes records again.
            for other in range(len(self.split.names)):
                positions = self.utterances(other)
                rows = slice(positions.start, positions.stop)
                write_npz(
                    self._record(other),
                    offset=index["offset"][rows],
                    size=index["size"][rows],
                    bytes=index["bytes"][other],
                )
            (self.folder / INDEX).unlink()

        path = self.folder / self.split.names[shard]
        offset = np.zeros((len(keys), len(self.speeds)), np.int64)
        size = np.zeros_like(offset)
        with replacing(path) as temporary, temporary.open("wb") as file:
            tar = open_tar(file)
            for position in sorted(members):
                row, column = position
                content = io.BytesIO()
                np.savez(content, allow_pickle=False, **members[position])
                offset[position] = tar.tarstream.offset
                suffix = f"speed-{self.speeds[column]:g}.npz"
                tar.write({"__key__": keys[row], suffix: content.getvalue()})
                size[position] = tar.tarstream.offset - offset[position]
            tar.close()

        # The record comes last: a kill before it leaves a tar that counts as missing.
        num_bytes = path.stat().st_size
        write_npz(
            self._record(shard),
            offset=offset,
            size=size,
            bytes=np.array(num_bytes),
        )
        return num_bytes

    def finish(self) -> None:
        """Make one index of the records of all shards, where there is none yet."""
        if (self.folder / INDEX).is_file():
            return

        offsets: list[np.ndarray] = []
        sizes: list[np.ndarray] = []
        num_bytes: list[np.ndarray] = []
        for shard in range(len(self.split.names)):
            record = _read_arrays(self._record(shard), RECORD_NAMES)
            assert record, "every shard has been written"
            offsets.append(record["offset"])
            sizes.append(record["size"])
            num_bytes.append(record["bytes"])
        write_npz(
            self.folder / INDEX,
            speeds=np.array(self.speeds),
            offset=np.concatenate(offsets),
            size=np.concatenate(sizes),
            bytes=np.stack(num_bytes),
        )

        for shard in range(len(self.split.names)):
            self._record(shard).unlink(missing_ok=True)
        # What killed processes left half written.
        for path in self.folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def _record(self, shard: int) -> Path:
        return self.folder / f"{self.split.names[shard]}.npz"


def _read_arrays(path: Path, dimensions: Mapping[str, int]) -> Arrays | None:
    """The arrays of an index or a record; None when it is not there, torn, or of another program."""
    arrays = read_npz(path)
    if arrays is None:
        return None
    for name, num_dimensions in dimensions.items():
        if name not in arrays or arrays[name].ndim != num_dimensions:
            return None
        # Speeds are the only ones that are not whole.
        kinds = "fi" if name == "speeds" else "i"
        if arrays[name].dtype.kind not in kinds:
            return None
    return arrays


def _file_bytes(path: Path) -> int | None:
    if not path.is_file():
        return None
    return path.stat().st_size
