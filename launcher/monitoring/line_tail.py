"""Files of lines that others append to, read on from where the last look ended.

A line that is still being written waits for its end. A file that was replaced, cut back, or written anew under the same
name is read from its beginning: what stands before the place that was reached is compared with what was read there.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from data.files import open_regular

# Read at a time; a longer line is none of ours, and is passed over.
BLOCK_BYTES = 1 << 22
# A row of two kilobytes for each of a million steps is an eighth of it.
MAX_FILE_BYTES = 1 << 34
# By which a file is known again.
MARK_BYTES = 256


@dataclass
class NewLines:
    """The lines since the last look; `is_anew`: they are the first ones, and those read before no longer count;
    `has_more`: there are more, for another look."""

    is_anew: bool = False
    has_more: bool = False
    lines: list[bytes] = field(default_factory=list)


class LineTail:
    """One such file, which need not exist yet.

    A link that leads out of `inside`, a pipe, a device or a huge file reads as empty; `problem` says so in a sentence.
    """

    def __init__(self, path: Path, inside: Path) -> None:
        self._path = path
        self._inside = inside
        self._version: tuple[int, int, int] | None = None
        self.problem = ""
        self._forget()

    def _forget(self) -> None:
        self.offset = 0
        self.num_bytes = 0
        self._mark = b""
        self._is_in_long_line = False

    def read(self) -> NewLines:
        """Return what is new, a block of it at most."""
        new = NewLines()
        try:
            status = os.stat(self._path)
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            if version == self._version and self.offset >= self.num_bytes:
                return new
            self.problem = ""
            if not is_inside(self._path, self._inside):
                raise PermissionError("it is a link that leads out of the run folder")
            if status.st_size > MAX_FILE_BYTES:
                raise ValueError(f"it has {status.st_size} bytes, more than {MAX_FILE_BYTES}")
            with open_regular(self._path) as file:
                self._version = version
                self.num_bytes = os.fstat(file.fileno()).st_size
                file.seek(max(0, self.offset - len(self._mark)))
                if self.num_bytes < self.offset or file.read(len(self._mark)) != self._mark:
                    self._forget()
                    self.num_bytes = os.fstat(file.fileno()).st_size
                    new.is_anew = True
                file.seek(self.offset)
                content = file.read(BLOCK_BYTES)
        # Not there, or not ours to read: as if it held nothing.
        except (OSError, ValueError) as error:
            if not isinstance(error, FileNotFoundError):
                self.problem = f"{self._path.name} is not read: {error}."
            new.is_anew = self.offset > 0
            self._version = None
            self._forget()
            return new
        self._take(content, new)
        return new

    def _take(self, content: bytes, new: NewLines) -> None:
        is_full = len(content) == BLOCK_BYTES
        end = content.rfind(b"\n") + 1
        lines = content[:end].split(b"\n")[:-1]
        if lines and self._is_in_long_line:
            # The rest of one that did not fit into the block before.
            lines = lines[1:]
            self._is_in_long_line = False
        new.lines = lines
        if end == 0 and is_full:
            self._is_in_long_line = True
            end = len(content)
        self.offset += end
        self._mark = (self._mark + content[:end])[-MARK_BYTES:]
        new.has_more = is_full
        if not is_full:
            # A line without its end: the file is looked at again when it has changed.
            self.num_bytes = self.offset


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path leads, through whatever links, to something in a folder."""
    return os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)
