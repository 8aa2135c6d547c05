"""A stretch of a file that is one stream of audio, and that stretch as a file of its own."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from data.files import open_regular


class AudioError(Exception):
    """The reason why one clip, or one row of a manifest, cannot be used; without a full stop, to be quoted."""


class ForeignAudioError(AudioError):
    """The reason why libsndfile does not read a file that another program may read."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The bytes of one stream; `header` goes in front of them, where the file's own header is wrong or lacks a
    length. `is_checked` is False in a container of which nothing is known here."""

    start: int
    stop: int
    header: bytes = b""
    is_checked: bool = field(default=True, compare=False)


class StreamFile(io.RawIOBase):
    """One stream of a file, to be read as if it were a file."""

    def __init__(self, path: Path, stream: Stream) -> None:
        super().__init__()
        self._file = open_regular(path)
        self._stream = stream
        self._size = len(stream.header) + stream.stop - stream.start
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        header = self._stream.header
        if self._position < len(header):
            content = header[self._position : self._position + len(view)]
        else:
            self._file.seek(self._stream.start + self._position - len(header))
            num_left = max(0, self._size - self._position)
            content = self._file.read(min(len(view), num_left))
        view[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def read_at(file: BinaryIO, start: int, size: int) -> bytes:
    """Up to `size` bytes of a file from `start` on."""
    file.seek(start)
    return file.read(size)
