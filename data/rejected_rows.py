"""The rejected rows of a corpus, of which a bounded number is in memory.

A list of a stranger may hold tens of millions of rows that nobody can use, each with its reason. Their number is exact
and none is lost: beyond the first thousands they lie in a temporary file, which has no name and ends with the process.

    rows in the order of (line, key) == sorted(all that were appended)
"""

import heapq
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

from data.audio import RejectedRow
from data.files import naming

# Names and reasons have a few hundred characters, and a path has 4096 at most.
MAX_HELD = 50_000
# Of each run of rows in the file, while all are read at once: 50 million rows are a thousand runs.
PIECE_BYTES = 2**14


class RejectedRows(Sequence[RejectedRow]):
    """Rows in the order of their lines, then of their keys; appended in any order."""

    def __init__(self, rows: Iterable[RejectedRow] = ()) -> None:
        self._held: list[RejectedRow] = []
        self._num_rows = 0
        self._file: Any = None
        # Where each sorted run of rows begins and ends in the file.
        self._runs: list[tuple[int, int]] = []
        self.extend(rows)

    def append(self, row: RejectedRow) -> None:
        """Add a row. OSError when the disk of temporary files has no room."""
        self._held.append(row)
        self._num_rows += 1
        if len(self._held) >= MAX_HELD:
            self._write_run()

    def extend(self, rows: Iterable[RejectedRow]) -> None:
        """Add some rows."""
        for row in rows:
            self.append(row)

    def __len__(self) -> int:
        return self._num_rows

    def __iter__(self) -> Iterator[RejectedRow]:
        held = sorted(self._held, key=_order)
        if not self._runs:
            return iter(held)
        runs = [self._read_run(start, end) for start, end in self._runs]
        return heapq.merge(*runs, held, key=_order)

    @overload
    def __getitem__(self, position: int) -> RejectedRow: ...
    @overload
    def __getitem__(self, position: slice) -> list[RejectedRow]: ...
    def __getitem__(self, position: int | slice) -> RejectedRow | list[RejectedRow]:
        if isinstance(position, slice):
            return list(islice(self, *position.indices(len(self))))
        if position < 0:
            position += len(self)
        for row in islice(self, max(position, 0), None):
            return row
        raise IndexError(position)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(RejectedRow.__eq__, self, other))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def _write_run(self) -> None:
        with naming(Path(tempfile.gettempdir())):
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="chorus-rejected-")  # noqa: SIM115 - it lasts as long as the rows
            start = self._file.tell()
            for row in sorted(self._held, key=_order):
                # ASCII: a name may hold what is no UTF-8.
                self._file.write(json.dumps([row.line, row.reason, row.key, row.path]).encode("ascii") + b"\n")
            self._file.flush()
        self._runs.append((start, self._file.tell()))
        self._held = []

    def _read_run(self, start: int, end: int) -> Iterator[RejectedRow]:
        rest = b""
        while start < end:
            piece = os.pread(self._file.fileno(), min(PIECE_BYTES, end - start), start)
            start += len(piece)
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield RejectedRow(*json.loads(line))


def _order(row: RejectedRow) -> tuple[int, str]:
    return row.line, row.key
