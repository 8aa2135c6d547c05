"""`metrics.jsonl`: one JSON object per line, the truth about a training stage.

A row is written by one system call, so a killed process leaves at most one torn line, at the end. Rows come
in ascending order of `step`; a resumed stage first cuts the file back to the step it resumes from. A number
that is not finite becomes null, because JSON has no word for it.
"""

import json
import logging
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data.files import open_regular, read_lines
from launcher.run_files import parse_metrics_row

logger = logging.getLogger(__name__)

# The metric of a layer's experts; the group is the layer's name.
EXPERT_LOAD = re.compile(r"experts/(.+)/load")

# A row has some kilobytes; a longer line is none.
MAX_ROW_BYTES = 1 << 22
# Of a file that is read: a million steps with the loads of many experts have less.
MAX_FILE_BYTES = 1 << 33
# Bytes that are read at a time from the end of a file.
TAIL_BLOCK_BYTES = 1 << 20

# Rows that thinning keeps: they are few, and each says something that its neighbours do not.
_ALWAYS_READ = (b'"validation/', b'"save_stall_s"', b'"goodput/')


class MetricsLog:
    """Appends rows to one file; once opened, it never raises into the training loop.

    Raises OSError from the constructor when the file cannot be read or written.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            # Rows ascend, so what is cut off (rows of later steps, a torn last line) lies at the end: the time depends
            # on these rows and not on the file's length.
            with path.open("r+b") as file:
                end = 0
                needs_newline = False
                for start, line in _lines_from_end(file):
                    row = parse_metrics_row(line)
                    if row is not None and row["step"] <= resume_step:
                        end = start + len(line)
                        # Whole, only its end is missing.
                        needs_newline = not line.endswith(b"\n")
                        break
                file.truncate(end)
                if needs_newline:
                    file.seek(end)
                    file.write(b"\n")
                file.flush()
                os.fsync(file.fileno())

        self.path = path
        self.lost_rows = 0
        self._file = path.open("ab", buffering=0)

    def append(self, row: dict) -> None:
        """Writes one row; one that cannot be written is counted in `lost_rows`, the first with a warning."""
        try:
            line = _encode(row)
            start_bytes = os.fstat(self._file.fileno()).st_size
            written_bytes = self._file.write(line)
            if written_bytes != len(line):
                # A full disk takes a part of the line: without this the next row would be glued to the torn one.
                os.ftruncate(self._file.fileno(), start_bytes)
                raise OSError(f"only {written_bytes} of {len(line)} bytes were taken; is the disk full?")
        except (OSError, ValueError, TypeError) as error:
            self.lost_rows += 1
            # On a full disk every step would warn.
            if self.lost_rows == 1:
                logger.warning("a row of %s could not be written, training goes on: %s", self.path, error)

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path, thin_to: int | None = None) -> Iterator[dict]:
    """Yields the rows of a metrics file; none when it is missing, no regular file, or too large for one. A torn line is
    no row.

    With `thin_to`, about that many rows of a longer file, evenly chosen, and all validations, saves and goodputs.
    """
    if not _is_metrics_file(path):
        return
    stride = 1
    if thin_to is not None:
        num_lines = sum(1 for _ in read_lines(path, MAX_ROW_BYTES))
        stride = max(1, math.ceil(num_lines / thin_to))

    for index, line in enumerate(read_lines(path, MAX_ROW_BYTES)):
        # Looking for names in the bytes of a line is much cheaper than parsing it.
        if index % stride != 0 and not any(name in line for name in _ALWAYS_READ):
            continue
        row = parse_metrics_row(line)
        if row is not None:
            yield row


def expert_loads(row: dict) -> Iterator[tuple[str, list[float]]]:
    """Yields each layer's name and its experts' shares of the choices; layers with NaN or infinity are skipped."""
    for key, load in row.items():
        match = EXPERT_LOAD.fullmatch(key)
        if match and isinstance(load, list) and load and None not in load:
            yield match[1], load


def read_last_rows(path: Path, number: int) -> list[dict]:
    """The last training rows (those with a loss) of a metrics file, oldest first, whatever the length of the file."""
    if not _is_metrics_file(path):
        return []
    rows: list[dict] = []
    with open_regular(path) as file:
        for _, line in _lines_from_end(file):
            row = parse_metrics_row(line)
            if row is not None and "loss" in row:
                rows.append(row)
            if len(rows) == number:
                break
    rows.reverse()
    return rows


def _is_metrics_file(path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    if not stat.S_ISREG(status.st_mode):
        return False
    if status.st_size > MAX_FILE_BYTES:
        # A file of holes takes no place on a disk, and hours to be read.
        logger.warning("%s has %d bytes, more than a stage writes, and is not read.", path, status.st_size)
        return False
    return True


def _lines_from_end(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yields the lines of a file, the last one first, each with the offset that it starts at; a very long one in
    pieces."""
    start = file.seek(0, os.SEEK_END)
    buffer = b""  # the bytes from `start` on that were not yielded yet
    while start > 0:
        size = min(TAIL_BLOCK_BYTES, start)
        start -= size
        file.seek(start)
        buffer = file.read(size) + buffer
        lines = re.findall(rb"[^\n]*\n|[^\n]+$", buffer)
        # The first line may begin before this block.
        offset = start + len(buffer)
        for line in reversed(lines[1:]):
            offset -= len(line)
            yield offset, line
        buffer = lines[0]
        # Together with all that is before it, a line of a gigabyte would be copied a thousand times.
        if len(buffer) > MAX_ROW_BYTES:
            yield start, buffer
            buffer = b""
    if buffer:
        yield 0, buffer


def _encode(row: dict) -> bytes:
    try:
        text = json.dumps(row, allow_nan=False, default=_plain)
    except ValueError:
        # Only now are values looked at one by one: almost all rows are finite.
        text = json.dumps(_finite(row), allow_nan=False)
    return text.encode() + b"\n"


def _plain(value: object) -> object:
    """Numbers and arrays of numpy or torch as Python's own."""
    to_list = getattr(value, "tolist", None)
    if to_list is None:
        raise TypeError(f"a metric must be a number, a string or a list, not {type(value).__name__}")
    return to_list()


def _finite(value: object) -> object:
    """The value with null for what is not finite, in lists and dictionaries too."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    return _finite(_plain(value))
