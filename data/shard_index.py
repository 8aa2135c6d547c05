"""The index of a split: where each utterance lies in its tars, and what shards.json says of them.

Reads from a folder or from a URL that fsspec knows. Refuses (`DataError`) a split that is missing,
incomplete or of another format.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np

from data.audio import RejectedRow
from data.errors import DataError

FORMAT = 1
SUMMARY = "shards.json"

INDEX_COLUMNS = {
    "shard": np.int32,
    "offset": np.int64,
    "size": np.int64,
    "samples": np.int64,
    "text_length": np.int32,
}


@dataclass(frozen=True)
class SplitReport:
    """What a split's folder holds; `rejected` are the utterances whose audio could not be decoded."""

    utterances: int
    seconds: float
    shards: int
    bytes: int
    rejected: tuple[RejectedRow, ...]


def is_url(folder: Path | str) -> bool:
    return "://" in str(folder)


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where each utterance of a split lies; columns are aligned, one row per utterance in the order of the
    shards. `shard` int32 [N] numbers `names`; `offset`, `size` int64 [N] are the bytes of all tar members
    of the utterance, headers and padding included; `samples` int64 [N] at `sample_rate_hz`; `text_length`
    int32 [N] in characters. `fingerprint` is a SHA-256 over those of all shards.
    """

    folder: Path | str
    sample_rate_hz: int
    names: tuple[str, ...]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    samples: np.ndarray
    text_length: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return len(self.shard)

    def rows(self) -> Iterator[dict[str, str]]:
        """key, text, speaker and language of each utterance, read from transcripts.jsonl one by one."""
        with _open(self.folder, "transcripts.jsonl") as file:
            num_rows = 0
            for line in file:
                num_rows += 1
                yield json.loads(line)
        if num_rows != len(self):
            raise _torn(self.folder, f"transcripts.jsonl has {num_rows} lines for {len(self)} utterances")

    def keys(self) -> Iterator[str]:
        return (row["key"] for row in self.rows())

    def transcripts(self) -> Iterator[str]:
        return (row["text"] for row in self.rows())


def read_index(folder: Path | str) -> ShardIndex:
    """Read a split's index from a folder or a URL that fsspec knows. Raises DataError when the split is
    missing, of another format, or when its parts do not agree: the counts of shards.json and index.npz, the
    byte ranges and, in a local folder, the presence and size of every shard.
    """
    summary = read_summary(folder)
    try:
        with (
            _open(folder, "index.npz") as file,
            np.load(io.BytesIO(file.read()), allow_pickle=False) as stored,
        ):
            columns = {name: stored[name].astype(kind, copy=False) for name, kind in INDEX_COLUMNS.items()}
        shards = summary["shards"]
        names = tuple(shard["name"] for shard in shards)
        counts = np.array([shard["utterances"] for shard in shards], np.int64)
        sizes = np.array([shard["bytes"] for shard in shards], np.int64)
        fingerprint = hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()
        index = ShardIndex(folder, int(summary["sample_rate_hz"]), names, **columns, fingerprint=fingerprint)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise _torn(folder, f"its index cannot be read ({error!r})") from error
    if not np.array_equal(index.shard, np.repeat(np.arange(len(names)), counts)):
        raise _torn(folder, f"index.npz has {len(index)} utterances, shards.json {counts.sum()}, or in other shards")
    if ((index.offset < 0) | (index.size <= 0) | (index.offset + index.size > sizes[index.shard])).any():
        raise _torn(folder, "index.npz points outside of the shards")
    if not is_url(folder):
        for name, size in zip(names, sizes, strict=True):
            path = Path(folder) / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                raise _torn(folder, f"{name} should have {size} bytes and has {found}")
    return index


def read_report(folder: Path) -> SplitReport:
    """What shards.json says of a split; DataError when it is missing or of another format."""
    summary = read_summary(folder)
    shards = summary["shards"]
    return SplitReport(
        utterances=sum(shard["utterances"] for shard in shards),
        seconds=sum(shard["seconds"] for shard in shards),
        shards=len(shards),
        bytes=sum(shard["bytes"] for shard in shards),
        rejected=tuple(RejectedRow(**row) for row in summary["rejected"]),
    )


def find_splits(folder: Path) -> dict[str, Path]:
    """The splits at `folder`: itself, or the folders in it, by name. DataError when there is none."""
    places = [folder, *sorted(folder.glob("[!.]*/"))]
    found = {place.name: place for place in places if (place / SUMMARY).is_file()}
    if not found:
        raise DataError(f"There are no shards at {folder}: neither it nor a folder in it has a shards.json.")
    return found


def read_summary(folder: Path | str) -> dict[str, Any]:
    try:
        with _open(folder, SUMMARY) as file:
            summary = json.load(file)
        seen = summary["format"]
    except FileNotFoundError as error:
        raise DataError(f"There are no shards at {folder}: it has no shards.json; prepare the corpus first.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _torn(folder, f"shards.json cannot be read ({error!r})") from error
    if seen != FORMAT:
        raise DataError(f"{folder} has shards of format {seen!r}, this version reads {FORMAT}; prepare them again.")
    return summary


def _torn(folder: Path | str, seen: str) -> DataError:
    return DataError(f"The shards at {folder} are not whole: {seen}; remove the folder and prepare the corpus again.")


def _open(folder: Path | str, name: str) -> BinaryIO:
    if is_url(folder):
        file_system, path = fsspec.url_to_fs(f"{str(folder).rstrip('/')}/{name}")
        return file_system.open(path, "rb")
    return (Path(folder) / name).open("rb")
