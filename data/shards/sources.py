"""The recordings that shards were made of: size, time of change and SHA-256 of each, beside the shards.

`sources.jsonl` tells whether a recording is still what it was. Size and time are compared first; where they differ, the
content decides, so that a corpus that was copied has not changed. Shards without the file, as earlier versions wrote
them, are good shards whose recordings are not known.
"""

import json
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data.errors import DataError
from data.files import file_sha256, parse_json, read_lines, replacing

SOURCES = "sources.jsonl"
# A path of Linux has 4096 bytes at most, of which each may be written as an escape.
MAX_LINE_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Source:
    """A recording as it was; `num_bytes` is None when it was not there, `sha256` empty when it was not read."""

    path: str
    num_bytes: int | None
    mtime_ns: int = 0
    sha256: str = ""

    @property
    def state(self) -> tuple[int | None, int]:
        """What changes when a file is written, in all but the rarest cases."""
        return self.num_bytes, self.mtime_ns


class SourceLog:
    """Describes recordings as they are read, from any thread, each once; `known` are those that were so before."""

    def __init__(self, known: Iterable[Source] = ()) -> None:
        self._lock = threading.Lock()
        self._locks: dict[Path, threading.Lock] = {}
        self._sources: dict[str, Source] = {source.path: source for source in known}
        self._new: list[Source] = []

    def add(self, path: Path) -> None:
        """Describe a recording before it is decoded: of a file that changes meanwhile, the time will differ."""
        with self._lock:
            lock = self._locks.setdefault(path, threading.Lock())
        # Many segments may lie in one long recording, which is hashed by the first thread that comes to it.
        with lock:
            name = str(path.absolute())
            if name in self._sources:
                return
            source = describe(path, with_content=True)
            with self._lock:
                self._sources[name] = source
                self._new.append(source)

    def take_new(self) -> list[Source]:
        """The recordings that were described since this was last called."""
        with self._lock:
            new = self._new
            self._new = []
        return new

    def write(self, folder: Path) -> None:
        """Write what was described into a folder."""
        write_sources(folder, self._sources.values())


def describe(path: Path, *, with_content: bool) -> Source:
    """A recording as it is now. One that cannot be read is described as missing: readable, it has changed."""
    name = str(path.absolute())
    try:
        stat = path.stat()
        sha256 = file_sha256(path) if with_content else ""
    except (OSError, ValueError):
        return Source(name, None)
    return Source(name, stat.st_size, stat.st_mtime_ns, sha256)


def write_sources(folder: Path, sources: Iterable[Source]) -> None:
    """Write sources.jsonl, in the order of the paths."""
    # ASCII: names of files may be no UTF-8, and are written as escapes.
    with replacing(folder / SOURCES, durable=False) as temporary, temporary.open("w", encoding="ascii") as file:
        for source in sorted(sources, key=lambda source: source.path):
            file.write(json.dumps(asdict(source)) + "\n")


def read_sources(folder: Path) -> dict[str, Source] | None:
    """The recordings of a split by their path; None where they were not recorded. DataError when the file is torn."""
    sources: dict[str, Source] = {}
    try:
        for line in read_lines(folder / SOURCES, MAX_LINE_BYTES):
            source = Source(**parse_json(line))
            _check_types(source)
            sources[source.path] = source
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{folder / SOURCES} cannot be read ({error!r:.200}); remove it, and changes of the recordings will not be "
            "noticed, or prepare the corpus again."
        ) from error
    return sources


def _check_types(source: Source) -> None:
    """Raise TypeError for a line that another program wrote."""
    if not isinstance(source.path, str) or not os.path.isabs(source.path) or "\0" in source.path:
        raise TypeError("a path is none")
    if not isinstance(source.num_bytes, int | None) or not isinstance(source.mtime_ns, int):
        raise TypeError("a size or a time is no number")
    if not isinstance(source.sha256, str):
        raise TypeError("a hash is no text")


def changed_sources(sources: Iterable[Source]) -> Iterator[Source]:
    """The recordings, as they were, whose content is no longer that.

    One that was not there and is now has changed; one that is gone has not: shards outlive the recordings.
    """
    for source in sources:
        # Without a Path, which takes longer than to look: there may be hundreds of thousands.
        try:
            now = os.stat(source.path)
        except (OSError, ValueError):
            continue
        if (now.st_size, now.st_mtime_ns) == source.state:
            continue
        seen = describe(Path(source.path), with_content=True)
        # What cannot be read is as good as gone. Without a hash of what it was, the time has to decide.
        if seen.num_bytes is not None and (not source.sha256 or seen.sha256 != source.sha256):
            yield source


def moved_sources(sources: dict[str, Source], paths: set[str]) -> dict[str, Source]:
    """The recordings, as they were, under the absolute paths that they have in a corpus that was moved as a whole."""
    if not paths or not sources or paths == sources.keys():
        return sources
    before = os.path.commonpath([os.path.dirname(path) for path in sources])
    after = os.path.commonpath([os.path.dirname(path) for path in paths])
    moved: dict[str, Source] = {}
    for source in sources.values():
        path = os.path.join(after, os.path.relpath(source.path, before))
        moved[path] = replace(source, path=path)
    return moved
