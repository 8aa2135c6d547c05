"""What an interrupted preparation had finished: its journal, beside the shards of a split that is not whole yet.

A line per shard says what the shard holds and how many utterances had been dealt with by then. A later preparation of
the same utterances from the same recordings keeps these shards as they are, and goes on behind them. A shard that is
not what its line says, as after a power cut, is written again with those behind it.
"""

import fcntl
import itertools
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr

from data.audio import RejectedRow
from data.errors import DataError
from data.files import file_sha256, is_file_name, parse_json, read_lines
from data.shards.sources import Source, SourceLog, changed_sources

JOURNAL = "journal.jsonl"
FORMAT = 1
MAX_LINE_BYTES = 2**28


class WrittenShard(NamedTuple):
    """A shard as its writer leaves it: its entry of shards.json, its rows of the index by column, and the length of
    transcripts.jsonl up to its end."""

    entry: dict[str, Any]
    columns: dict[str, list[int]]
    transcripts_bytes: int


@dataclass(frozen=True)
class _Line:
    """A line of the journal: a shard, how many utterances had been dealt with, and what was noticed since the last."""

    shard: WrittenShard
    num_done: int
    rejected: list[RejectedRow]
    clipped: dict[str, int]
    sources: list[Source]


class ShardJournal:
    """What has become of the utterances of one split, and on disk what had when its last shard was written.

    `made_from` is the fingerprint of the split. `finished` are the shards that need not be written again: none where
    the recordings that they were made of have changed. `rejected` and `sources` go on where they ended; `clipped` has
    the samples above full scale of each utterance that has some. DataError when another process writes into the folder.
    """

    def __init__(self, folder: Path, made_from: str) -> None:
        self._file = (folder / JOURNAL).open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise DataError(f"Another process is writing to {folder}; wait for it, or end it.") from error
        self._folder = folder
        lines = self._whole_lines(made_from)
        sources = list(itertools.chain.from_iterable(line.sources for line in lines))
        if next(changed_sources(sources), None) is not None:
            lines = []
            sources = []
        self.finished = [line.shard for line in lines]
        self.num_done = lines[-1].num_done if lines else 0
        self.rejected = list(itertools.chain.from_iterable(line.rejected for line in lines))
        self.clipped = dict(itertools.chain.from_iterable(line.clipped.items() for line in lines))
        self.sources = SourceLog(sources)
        self._num_rejected = len(self.rejected)
        self._num_clipped = len(self.clipped)
        # What is behind the last good shard is written anew.
        self._file.truncate(0)
        self._write(_head(made_from))
        for line in lines:
            self._write(asdict(line))

    def __enter__(self) -> "ShardJournal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, shard: WrittenShard, num_done: int) -> None:
        """Record a shard whose files are closed, after `num_done` utterances of the split."""
        # Of both, what came since the last line.
        rejected = self.rejected[self._num_rejected :]
        clipped = dict(itertools.islice(self.clipped.items(), self._num_clipped, None))
        self._num_rejected = len(self.rejected)
        self._num_clipped = len(self.clipped)
        self._write(asdict(_Line(shard, num_done, rejected, clipped, self.sources.take_new())))

    def _write(self, value: dict[str, Any]) -> None:
        # ASCII: names of files may be no UTF-8.
        self._file.write(json.dumps(value).encode("ascii") + b"\n")
        self._file.flush()

    def _whole_lines(self, made_from: str) -> list[_Line]:
        """The lines up to the first whose shard is not there as it was written."""
        whole: list[_Line] = []
        transcripts = self._folder / "transcripts.jsonl"
        for line in _read_lines(self._folder, made_from):
            path = self._folder / line.shard.entry["name"]
            try:
                is_whole = file_sha256(path) == line.shard.entry["sha256"]
                is_whole = is_whole and transcripts.stat().st_size >= line.shard.transcripts_bytes
            except (OSError, ValueError):
                is_whole = False
            if not is_whole:
                break
            whole.append(line)
        return whole


def is_locked(folder: Path) -> bool:
    """Whether a process is writing shards into a folder."""
    try:
        with (folder / JOURNAL).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def has_finished_shards(folder: Path, made_from: str) -> bool:
    """Whether an unfinished split has shards that a preparation of `made_from` may keep."""
    return bool(_read_lines(folder, made_from))


def _head(made_from: str) -> dict[str, Any]:
    # Other versions may decode and encode differently, and a split is made by one.
    versions = {"libsndfile": soundfile.__libsndfile_version__, "soxr": soxr.__version__, "numpy": np.__version__}
    return {"format": FORMAT, "made_from": made_from, "made_with": versions}


def _read_lines(folder: Path, made_from: str) -> list[_Line]:
    """The lines of a journal; none where there is none, or it is that of another split."""
    lines: list[_Line] = []
    # The last line may be half written.
    with suppress(OSError, ValueError, TypeError, KeyError):
        contents = read_lines(folder / JOURNAL, MAX_LINE_BYTES)
        if parse_json(next(contents, b"{}")) != _head(made_from):
            return []
        for content in contents:
            value = parse_json(content)
            value["shard"] = WrittenShard(*value["shard"])
            value["rejected"] = [RejectedRow(**row) for row in value["rejected"]]
            value["sources"] = [Source(**source) for source in value["sources"]]
            line = _Line(**value)
            if not is_file_name(line.shard.entry["name"]):
                break
            lines.append(line)
    return lines
