"""The index of a split: where each utterance lies in its tars, and what shards.json says of them.

Reads from a folder or from a URL (data/remote). Refuses (`DataError`) a split that is missing, incomplete or of another
format. A split may come from anywhere: names in it lead to files of its own folder, and no count, size or shape in it
makes a reader allocate more than the files hold.
"""

import hashlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import BaseModel, Field, ValidationError, field_validator

from data.audio import RejectedRow
from data.errors import DataError
from data.files import MAX_JSON_BYTES, is_file_name, open_regular, parse_json, read_bounded
from data.npz import load_arrays
from data.recordings import MAX_RATE_HZ
from data.remote.remote_file import RemoteFile
from data.remote.retrying import RetryPolicy
from data.remote.stores import PIECE_BYTES, open_store

FORMAT = 1
SUMMARY = "shards.json"
INDEX = "index.npz"
TRANSCRIPTS = "transcripts.jsonl"

INDEX_COLUMNS = {
    "shard": np.int32,
    "offset": np.int64,
    "size": np.int64,
    "samples": np.int64,
    "text_length": np.int32,
}
# Of the two members of an utterance. Splits that were written before there was one have none.
CHECKSUM = "crc32"
CHECKSUM_KIND = np.uint32
ROW_KEYS = ("key", "text", "speaker", "language")

# Bounds of one split, far above any corpus: a hundred million utterances are a hundred thousand hours of speech.
MAX_UTTERANCES = 10**8
MAX_SHARD_BYTES = 2**50
# The line of an utterance in transcripts.jsonl.
MAX_ROW_BYTES = 2**20
# The columns' bytes per utterance, and the headers of the archive.
INDEX_ROW_BYTES = sum(np.dtype(kind).itemsize for kind in (*INDEX_COLUMNS.values(), CHECKSUM_KIND))
INDEX_HEADER_BYTES = 2**16


logger = logging.getLogger(__name__)


class NoShardsError(DataError):
    """A place that has no shards.json."""


class _Shard(BaseModel, strict=True):
    """What shards.json says of one tar."""

    name: str
    utterances: int = Field(ge=0, le=MAX_UTTERANCES)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    sha256: str = Field(max_length=64)
    bytes: int = Field(ge=0, le=MAX_SHARD_BYTES)

    @field_validator("name")
    @classmethod
    def is_in_the_folder(cls, name: str) -> str:
        """Whoever reads a shard joins its name to a folder, that of the split or of a cache beside it."""
        if not is_file_name(name):
            raise ValueError(f"{name[:80]!r} is no file name of a shard")
        return name


class _Rejected(BaseModel, strict=True):
    """What shards.json says of an utterance that could not be written."""

    line: int
    reason: str
    key: str = ""


class _Summary(BaseModel, strict=True):
    """The content of shards.json, as far as it is read; what it was made from is compared by whoever made it."""

    format: int
    sample_rate_hz: int = Field(ge=1, le=MAX_RATE_HZ)
    shards: list[_Shard]
    rejected: list[_Rejected]

    @field_validator("shards")
    @classmethod
    def is_bounded(cls, shards: list[_Shard]) -> list[_Shard]:
        if sum(shard.utterances for shard in shards) > MAX_UTTERANCES:
            raise ValueError(f"together they have more than {MAX_UTTERANCES} utterances")
        return shards


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
    int32 [N] in characters. `fingerprint` is a SHA-256 over those of all shards, `sha256` and `shard_bytes` are of each
    of them. `crc32` uint32 [N] is that of both members of the utterance; None in splits written without.
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
    sha256: tuple[str, ...] = ()
    shard_bytes: tuple[int, ...] = ()
    crc32: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.shard)

    def shard_name(self, utterance: int) -> str:
        """The file name of the shard that holds an utterance."""
        return self.names[self.shard[utterance]]

    def rows(self) -> Iterator[dict[str, str]]:
        """key, text, speaker and language of each utterance, read from transcripts.jsonl one by one."""
        num_rows = 0
        try:
            with _open(self.folder, TRANSCRIPTS) as file:
                while num_rows <= len(self):
                    # A line without an end would be read to the end of the file.
                    line = file.readline(MAX_ROW_BYTES)
                    if not line:
                        break
                    yield parse_row(line)
                    num_rows += 1
        except (OSError, ValueError) as error:
            raise _torn(self.folder, f"line {num_rows + 1} of {TRANSCRIPTS} cannot be read ({error})") from error
        if num_rows != len(self):
            # One line too many ends the reading: how many there are is not counted.
            number = "more" if num_rows > len(self) else str(num_rows)
            raise _torn(self.folder, f"{TRANSCRIPTS} has {number} lines for {len(self)} utterances")

    def line_starts(self) -> np.ndarray:
        """Where the line of each utterance begins in transcripts.jsonl, and the end: int64 [N + 1] in bytes.

        DataError when there are not as many lines.
        """
        positions = [np.zeros(1, np.int64)]
        num_bytes = 0
        num_lines = 0
        try:
            with _open(self.folder, TRANSCRIPTS) as file:
                # Of a file without lines no more is kept than a piece.
                while num_lines <= len(self):
                    piece = file.read(PIECE_BYTES)
                    if not piece:
                        break
                    ends = np.flatnonzero(np.frombuffer(piece, np.uint8) == ord("\n"))
                    positions.append(num_bytes + ends + 1)
                    num_bytes += len(piece)
                    num_lines += len(ends)
        except (OSError, ValueError) as error:
            raise _torn(self.folder, f"{TRANSCRIPTS} cannot be read ({error})") from error
        if num_lines != len(self):
            raise _torn(self.folder, f"{TRANSCRIPTS} has not the lines of {len(self)} utterances")
        return np.concatenate(positions)

    def keys(self) -> Iterator[str]:
        for row in self.rows():
            yield row["key"]

    def transcripts(self) -> Iterator[str]:
        for row in self.rows():
            yield row["text"]


def parse_row(line: bytes) -> dict[str, str]:
    """A line of transcripts.jsonl: key, text, speaker and language. ValueError when it is none."""
    return parse_texts(line, ROW_KEYS)


def parse_texts(content: bytes, names: Sequence[str]) -> dict[str, str]:
    """A JSON mapping that has a text under each of the names. ValueError when it has not.

    Half of a surrogate pair, which JSON can write, is no text: no file in UTF-8 and no tokenizer takes it.
    """
    values = parse_json(content)
    if not isinstance(values, dict):
        raise ValueError("it is no mapping")
    for name in names:
        if not isinstance(values.get(name), str):
            raise ValueError(f"it has no {name}")
        # Raises a ValueError.
        values[name].encode()
    return values


def read_index(folder: Path | str, *, check_shards: bool = True, max_damaged: float = 0.0) -> ShardIndex:
    """Read a split's index from a folder or a URL. Raises DataError when the split is missing, of another format, or
    when its parts do not agree: the counts of shards.json and index.npz, the byte ranges and, in a local folder, the
    presence and size of every shard (unless `check_shards` is False: for whoever looks at each of them).

    Shards that hold up to the share `max_damaged` of the utterances may be missing or of another size: they are named
    in the log, and what cannot be read of them is quarantined when it is read.
    """
    summary = read_summary(folder)
    names: list[str] = []
    counts: list[int] = []
    sizes: list[int] = []
    digests: list[str] = []
    digest = hashlib.sha256()
    for shard in summary["shards"]:
        names.append(shard["name"])
        counts.append(shard["utterances"])
        sizes.append(shard["bytes"])
        digests.append(shard["sha256"])
        digest.update(shard["sha256"].encode())

    num_utterances = sum(counts)
    try:
        content = _read(folder, INDEX, INDEX_HEADER_BYTES + INDEX_ROW_BYTES * num_utterances)
        columns = _index_columns(load_arrays(io.BytesIO(content)), num_utterances)
    except (OSError, ValueError) as error:
        raise _torn(folder, f"its index cannot be read ({error})") from error

    index = ShardIndex(
        folder=folder,
        sample_rate_hz=summary["sample_rate_hz"],
        names=tuple(names),
        fingerprint=digest.hexdigest(),
        sha256=tuple(digests),
        shard_bytes=tuple(sizes),
        **columns,
    )
    if not np.array_equal(index.shard, np.repeat(np.arange(len(names)), counts)):
        raise _torn(folder, "index.npz has its utterances in other shards than shards.json")

    shard_bytes = np.array(sizes, np.int64)[index.shard]
    # Not offset + size, which may be beyond 64 bits.
    outside = (index.offset < 0) | (index.size <= 0) | (index.size > shard_bytes - index.offset)
    if outside.any():
        raise _torn(folder, "index.npz points outside of the shards")
    if (index.samples < 0).any() or (index.text_length < 0).any():
        raise _torn(folder, "index.npz has utterances of less than nothing")

    # Behind a URL each size would be a request; a shard that is missing there is noticed when it is read.
    if check_shards and not is_url(folder):
        _check_sizes(index, counts, max_damaged)
    return index


def _check_sizes(index: ShardIndex, counts: Sequence[int], max_damaged: float) -> None:
    """Log the shards of a folder that are missing or of another size. DataError when they hold too many utterances."""
    damage = ""
    num_damaged = 0
    for name, expected_bytes, num_utterances in zip(index.names, index.shard_bytes, counts, strict=True):
        path = Path(index.folder) / name
        num_bytes = path.stat().st_size if path.is_file() else None
        if num_bytes == expected_bytes:
            continue
        num_damaged += num_utterances
        damage = f"{name} should have {expected_bytes} bytes and has {num_bytes}"
        if num_damaged > max_damaged * len(index):
            break
        logger.warning("%s: %s; what cannot be read of it is quarantined.", index.folder, damage)
    if num_damaged > max_damaged * len(index):
        if max_damaged > 0:
            damage += (
                f", and with it {num_damaged} of {len(index)} utterances or more are in shards like it, above the "
                f"{max_damaged:.1%} that cluster.storage.max_quarantined allows"
            )
        raise _torn(index.folder, damage)


def _index_columns(stored: dict[str, np.ndarray], num_utterances: int) -> dict[str, np.ndarray]:
    """The columns of an index, each of its type. ValueError when one is missing or of other numbers."""
    kinds: dict[str, type[np.integer]] = dict(INDEX_COLUMNS)
    if CHECKSUM in stored:
        kinds[CHECKSUM] = CHECKSUM_KIND
    columns: dict[str, np.ndarray] = {}
    for name, kind in kinds.items():
        if name not in stored:
            raise ValueError(f"{INDEX} has no column {name}")
        column = stored[name]
        if not np.can_cast(column.dtype, kind, "safe") or column.ndim != 1:
            raise ValueError(f"column {name} of {INDEX} is {column.dtype} of shape {column.shape}")
        if len(column) != num_utterances:
            raise ValueError(f"index.npz has {len(column)} utterances, shards.json {num_utterances}")
        columns[name] = column.astype(kind, copy=False)
    return columns


def read_report(folder: Path) -> SplitReport:
    """What shards.json says of a split; DataError when it is missing or of another format."""
    summary = read_summary(folder)
    shards = summary["shards"]
    rejected: list[RejectedRow] = []
    for row in summary["rejected"]:
        rejected.append(RejectedRow(row["line"], row["reason"], row.get("key", "")))
    return SplitReport(
        utterances=sum(shard["utterances"] for shard in shards),
        seconds=sum(shard["seconds"] for shard in shards),
        shards=len(shards),
        bytes=sum(shard["bytes"] for shard in shards),
        rejected=tuple(rejected),
    )


def local_folder(name: str) -> Path:
    """The folder that a user names. DataError for a URL: as a path it would be one of the current folder."""
    if is_url(name):
        raise DataError(
            f"{name} is a URL, and only shards in a folder are looked at and rewritten: fetch the split with the tools "
            "of its store, and name the folder. Trainings and evaluations read it where it is (corpus.shards)."
        )
    return Path(name)


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
    """The content of shards.json, checked. DataError when it is missing, unreadable or of another format."""
    try:
        summary = parse_json(_read(folder, SUMMARY, MAX_JSON_BYTES))
        version = summary["format"]
    except FileNotFoundError as error:
        raise NoShardsError(
            f"There are no shards at {folder}: it has no shards.json; prepare the corpus first."
        ) from error
    except OSError as error:
        if is_url(folder):
            raise _out_of_reach(folder, error) from error
        raise _torn(folder, f"shards.json cannot be read ({error!r:.300})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _torn(folder, f"shards.json cannot be read ({error!r:.300})") from error
    if version != FORMAT:
        raise DataError(
            f"{folder} has shards of format {str(version)[:20]}, this version reads {FORMAT}; prepare them again."
        )
    try:
        _Summary.model_validate(summary)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _torn(folder, f"shards.json has, at {place}: {first['msg']}") from error
    return summary


def _torn(folder: Path | str, reason: str) -> DataError:
    remedy = "remove the folder and prepare the corpus again"
    if is_url(folder):
        remedy = "upload the split again, whole"
    return DataError(f"The shards at {folder} are not whole: {reason}; {remedy}.")


def _out_of_reach(url: Path | str, error: OSError) -> DataError:
    reason = "did not give it"
    remedy = "Look whether it is up and whether the URL is right, then give the same command again"
    if isinstance(error, PermissionError):
        reason = "refused it"
        remedy = (
            "Credentials come from the environment and the store's own files alone (docs/remote-shards.md); S3 answers "
            "so for what is missing too, where they do not allow to list the bucket"
        )
    return DataError(f"shards.json could not be read from {url}: the store {reason} ({error}). {remedy}.")


def _read(folder: Path | str, name: str, max_bytes: int) -> bytes:
    """A whole file of a split. ValueError when it has more than `max_bytes`, OSError when it cannot be read."""
    if not is_url(folder):
        return read_bounded(Path(folder) / name, max_bytes)
    content = bytearray()
    with _open(folder, name) as file:
        # Piece by piece: a whole read would allocate what the file may have at most.
        while len(content) <= max_bytes:
            piece = file.read(PIECE_BYTES)
            if not piece:
                return bytes(content)
            content += piece
    raise ValueError(f"{name} has more than {max_bytes} bytes")


def _open(folder: Path | str, name: str) -> BinaryIO:
    if is_url(folder):
        url = str(folder).rstrip("/")
        return io.BufferedReader(RemoteFile(open_store(url), f"{url}/{name}", RetryPolicy()))
    return open_regular(Path(folder) / name)
