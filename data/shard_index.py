"""The index of a split: where each utterance lies in its tars, and what shards.json says of them.

Reads from a folder or from a URL that fsspec knows. Refuses (`DataError`) a split that is missing,
incomplete or of another format.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np

from data.audio import RejectedRow
from data.errors import DataError
from data.npz import UNREADABLE

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

    def shard_name(self, utterance: int) -> str:
        """The file name of the shard that holds an utterance."""
        return self.names[self.shard[utterance]]

    def rows(self) -> Iterator[dict[str, str]]:
        """key, text, speaker and language of each utterance, read from transcripts.jsonl one by one."""
        num_rows = 0
        with _open(self.folder, "transcripts.jsonl") as file:
            for line in file:
                num_rows += 1
                yield json.loads(line)
        if num_rows != len(self):
            raise _torn(self.folder, f"transcripts.jsonl has {num_rows} lines for {len(self)} utterances")

    def keys(self) -> Iterator[str]:
        for row in self.rows():
            yield row["key"]

    def transcripts(self) -> Iterator[str]:
        for row in self.rows():
            yield row["text"]


def read_index(folder: Path | str) -> ShardIndex:
    """Read a split's index from a folder or a URL that fsspec knows. Raises DataError when the split is
    missing, of another format, or when its parts do not agree: the counts of shards.json and index.npz, the
    byte ranges and, in a local folder, the presence and size of every shard.
    """
    summary = read_summary(folder)
    names: list[str] = []
    counts: list[int] = []
    sizes: list[int] = []
    digest = hashlib.sha256()
    columns: dict[str, np.ndarray] = {}
    try:
        for shard in summary["shards"]:
            names.append(shard["name"])
            counts.append(shard["utterances"])
            sizes.append(shard["bytes"])
            digest.update(shard["sha256"].encode())

        with (
            _open(folder, "index.npz") as file,
            # numpy seeks in the archive, and a file behind a URL may not be seekable.
            np.load(io.BytesIO(file.read()), allow_pickle=False) as stored,
        ):
            for name, kind in INDEX_COLUMNS.items():
                columns[name] = stored[name].astype(kind, copy=False)

        index = ShardIndex(
            folder=folder,
            sample_rate_hz=int(summary["sample_rate_hz"]),
            names=tuple(names),
            fingerprint=digest.hexdigest(),
            **columns,
        )
        shard_bytes = np.array(sizes, np.int64)
        num_utterances = np.array(counts, np.int64)
    except (OSError, TypeError, AttributeError, *UNREADABLE) as error:
        raise _torn(folder, f"its index cannot be read ({error!r})") from error

    if not np.array_equal(index.shard, np.repeat(np.arange(len(names)), num_utterances)):
        raise _torn(folder, f"index.npz has {len(index)} utterances, shards.json {sum(counts)}, or in other shards")

    ends = index.offset + index.size
    outside = (index.offset < 0) | (index.size <= 0) | (ends > shard_bytes[index.shard])
    if outside.any():
        raise _torn(folder, "index.npz points outside of the shards")

    # Behind a URL each size would be a request; a shard that is missing there is noticed when it is read.
    if not is_url(folder):
        for name, expected_bytes in zip(names, sizes, strict=True):
            path = Path(folder) / name
            num_bytes = path.stat().st_size if path.is_file() else None
            if num_bytes != expected_bytes:
                raise _torn(folder, f"{name} should have {expected_bytes} bytes and has {num_bytes}")
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
    splits: dict[str, Path] = {}
    # Folders whose name begins with a dot are splits that are still being written.
    for candidate in [folder, *sorted(folder.glob("[!.]*/"))]:
        if (candidate / SUMMARY).is_file():
            splits[candidate.name] = candidate
    if not splits:
        raise DataError(f"There are no shards at {folder}: neither it nor a folder in it has a shards.json.")
    return splits


def read_summary(folder: Path | str) -> dict[str, Any]:
    """The content of shards.json. DataError when it is missing, unreadable or of another format."""
    try:
        with _open(folder, SUMMARY) as file:
            summary = json.load(file)
        version = summary["format"]
    except FileNotFoundError as error:
        raise DataError(f"There are no shards at {folder}: it has no shards.json; prepare the corpus first.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _torn(folder, f"shards.json cannot be read ({error!r})") from error
    if version != FORMAT:
        raise DataError(f"{folder} has shards of format {version!r}, this version reads {FORMAT}; prepare them again.")
    shards = summary.get("shards")
    if not isinstance(shards, list) or not all(isinstance(shard, dict) for shard in shards):
        raise _torn(folder, "shards.json lists no shards")
    if not all(isinstance(shard.get("sha256"), str) for shard in shards):
        raise _torn(folder, "shards.json has a shard without its SHA-256")
    for shard in shards:
        name = shard.get("name", "")
        # Whoever reads a shard joins its name to the folder, which must not lead out of it.
        if not isinstance(name, str) or name in (".", "..") or re.search(r"[/\\\0]", name):
            raise _torn(folder, f"shards.json names a shard {name!r}, which is no file name")
    return summary


def _torn(folder: Path | str, reason: str) -> DataError:
    return DataError(f"The shards at {folder} are not whole: {reason}; remove the folder and prepare the corpus again.")


def _open(folder: Path | str, name: str) -> BinaryIO:
    if is_url(folder):
        file_system, path = fsspec.url_to_fs(f"{str(folder).rstrip('/')}/{name}")
        return file_system.open(path, "rb")
    return (Path(folder) / name).open("rb")
