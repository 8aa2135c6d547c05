"""Files that a reader sees whole or not at all, their digests, and bounds for those that others wrote.

Every write that replaces a file in place goes through `replacing`, every SHA-256 of a file through `file_sha256`. A
name that stands in a file of ours and leads to another file is one that `is_file_name` allows. JSON that somebody else
may have written is read by `read_json` or `parse_json`, whose errors are OSError and ValueError whatever the bytes are.
A file that may be somebody else's is opened by `open_regular` or `regular_descriptor`: a named pipe in its place would
be waited for without end, and a device read without end.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

# The largest file of JSON that is read. Parsed, JSON takes up to twenty times its bytes.
MAX_JSON_BYTES = 128 * 2**20
# The largest file of lines that is read: fifty million rejected rows have as much.
MAX_LINES_BYTES = 2**34
# Digits of a number beyond the largest that is finite in floating point.
LONG_NUMBER = re.compile("[0-9]{309}")
# A name in the same folder: no separator, no leading dot (hidden files are half written), nothing that a shell, a URL
# or a terminal takes for more than a letter.
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


class NoRegularFileError(OSError, ValueError):
    """What lies in the place of a file is a pipe, a device, a socket or a folder.

    An OSError, for the file cannot be opened, and a ValueError, for what is there is not what belongs there.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__(errno.EINVAL, "it is no regular file", str(path))

    def __str__(self) -> str:
        return f"{os.path.basename(self.filename)} is no regular file"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


def is_file_name(name: Any) -> bool:
    """Whether a name that was read from a file may be joined to a folder: it leads to a file in there, and no other."""
    return isinstance(name, str) and FILE_NAME.fullmatch(name) is not None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in those errors of the system that name none: a write that finds no room does not say where."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a path to write to; when the block ends well, that file takes the place of `path` in one step.

    The yielded path is hidden, lies in the same folder and has a name that nobody else has: two writers never share it,
    and it is no link that leads elsewhere. After an error it is removed and `path` stays as it was. With `durable` the
    content and the rename survive a power cut; without, they are only safe from a kill of this process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    # Made here, not by whoever writes: O_EXCL refuses what is there already, be it a link to a file of somebody else.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    os.close(descriptor)
    try:
        with naming(path):
            yield temporary
            if durable:
                _flush(temporary)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        # The rename is an entry of the folder, which has its own place on the disk.
        flush_folder(path.parent)


def remove_path(path: Path) -> None:
    """Remove a folder with all that is in it, or the file or link in its place, as far as that is possible.

    What a link leads to stays: it may be a folder of somebody else.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename inside it survives a power cut."""
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, as lower-case hexadecimal digits. Raises as `open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read bytes. NoRegularFileError when it is none, OSError as from `open`."""
    return os.fdopen(regular_descriptor(path), "rb")


def regular_descriptor(path: Path | str) -> int:
    """A descriptor of a regular file, to read from; whoever asked closes it. Raises as `open_regular`."""
    try:
        # O_NONBLOCK: without it a pipe is waited for here, before anything could be looked at.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        # Of a socket, and of a device without a driver.
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise NoRegularFileError(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NoRegularFileError(path)
    return descriptor


def check_regular(path: Path) -> None:
    """Refuse what is no regular file, before a library that is given the path opens it. Raises as `open_regular`."""
    os.close(regular_descriptor(path))


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file. ValueError when it has more than `max_bytes`; else raises as `open_regular`."""
    with open_regular(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes > max_bytes:
            raise ValueError(f"{path.name} has {num_bytes} bytes, more than {max_bytes}")
        return file.read(num_bytes)


def read_lines(path: Path, max_bytes: int) -> Iterator[bytes]:
    """The lines of a regular file, one longer than `max_bytes` in pieces. ValueError when it has more than
    `MAX_LINES_BYTES` in all; else raises as `open_regular`."""
    with open_regular(path) as file:
        # A file of holes takes no place on a disk, and a line of ours in it would be looked for in terabytes.
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes > MAX_LINES_BYTES:
            raise ValueError(f"{path.name} has {num_bytes} bytes, more than {MAX_LINES_BYTES}")
        while True:
            line = file.readline(max_bytes)
            if not line:
                return
            yield line


def decode_text(content: bytes) -> str:
    """The text of bytes in UTF-8. ValueError when they are none.

    Python's own error holds all of the bytes, and a message with its representation would be as long as the file.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"byte {error.start} of {len(content)} is no UTF-8"
    raise ValueError(problem)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, of which bytes are UTF-8.

    ValueError when it is none, nested too deep, or has a whole number with which nothing can be computed.
    """
    if isinstance(text, bytes):
        # By itself json would guess UTF-16 and UTF-32.
        text = decode_text(text)
    parse_int = None
    # Asked for each number, it would cost as much as all the rest.
    if LONG_NUMBER.search(text):
        parse_int = _parse_int
    # Outside of the handler, so that what failed is freed before the error is raised.
    problem = "it is nested too deep"
    with suppress(RecursionError):
        try:
            return json.loads(text, parse_int=parse_int)
        except MemoryError:
            problem = "there is no memory for its values"
    raise ValueError(problem)


def _parse_int(digits: str) -> int:
    if LONG_NUMBER.search(digits):
        raise ValueError(f"the number {digits[:20]}... has {len(digits)} digits")
    return int(digits)


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file in UTF-8. OSError when it cannot be read, ValueError when it holds no JSON that is."""
    return parse_json(read_bounded(path, max_bytes))
