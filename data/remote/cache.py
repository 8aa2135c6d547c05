"""Ranges and files of remote stores on the disk of this host, bounded in bytes, shared by all processes of its user.

    bytes of all entries and of what is being written <= the bound, whoever writes and whoever is killed
    what `get` returns was given to `put`, whole

An entry is a file that was renamed into its place and begins with its digest; one that is torn, as after a power cut,
is removed and not returned. Room is reserved in `usage` under a lock before anything is written, so that a kill leaves
the count too high and never too low; the next eviction counts anew. Evicted is what was read longest ago. The lock is
the kernel's (flock) and ends with its process.

What cannot be written is not kept, and said once: a cache never fails a read.
"""

import errno
import fcntl
import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from data.files import open_regular, regular_descriptor, replacing

DIGEST_BYTES = 16
# An eviction makes more room than is needed at once: it reads the whole folder.
LOW_WATER = 0.9
# Of the disk; checkpoints are written to it too.
MIN_FREE_RATIO = 0.05
# Half-written files of processes that were killed. One that is being written is never so old.
STALE_S = 3600.0
USAGE_DIGITS = 20
# An entry is called by its SHA-256, and its folder by the first two digits; half written, as `replacing` calls it.
ENTRY_FOLDER = re.compile(r"[0-9a-f]{2}")
ENTRY_FILE = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}\..*\.tmp")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    """A file of the cache as a scan sees it."""

    read_ns: int
    size: int
    path: str


class RangeCache:
    """Bytes by name in a folder; safe to use from several threads and processes."""

    def __init__(self, folder: Path, max_bytes: int):
        """DataError when the folder belongs to somebody else, or others may write to it."""
        self.folder = folder
        self.max_bytes = max_bytes
        self._has_complained = False
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.stat()
        except OSError as error:
            self._complain(error)
            self.max_bytes = 0
            return
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise DataError(
                f"Remote shards are not kept in {folder}: others may write there, and would decide what is trained on. "
                "Name a folder of your own in CHORUS_CACHE, or take their right to write (chmod go-w)."
            )

    def get(self, name: str) -> bytes | None:
        """What was put under a name; None when it is not there, or torn."""
        path = self._path(name)
        try:
            with open_regular(path) as file:
                digest = file.read(DIGEST_BYTES)
                content = file.read()
        except (OSError, ValueError):
            return None
        if _digest(content) != digest:
            logger.warning("%s was torn and is fetched again.", path)
            self.drop(name)
            return None
        # By this time the entry counts as read: the access time of a file is rarely kept by its disk.
        with suppress(OSError):
            os.utime(path)
        return content

    def put(self, name: str, content: bytes) -> None:
        """Keep some bytes under a name, if there is room for them."""
        try:
            # Not flushed: what a power cut tears has another digest.
            with replacing(self._path(name), durable=False) as temporary:
                self._reserve(temporary, DIGEST_BYTES + len(content))
                with temporary.open("r+b") as file:
                    file.write(_digest(content))
                    file.write(content)
        except OSError as error:
            self._complain(error)

    def drop(self, name: str) -> None:
        """Forget what is under a name."""
        with suppress(OSError):
            self._path(name).unlink()

    def open_file(self, name: str) -> int | None:
        """A descriptor of a whole file that was put; None when it is not there. Whoever asked closes it."""
        path = self._path(name)
        try:
            descriptor = regular_descriptor(path)
        except OSError:
            return None
        with suppress(OSError):
            os.utime(path)
        return descriptor

    def put_file(self, name: str, pieces: Iterator[bytes], num_bytes: int, sha256: str) -> bool:
        """Keep a whole file as it comes in pieces. False when there is no room for it; ValueError when it has other
        bytes than these; what `pieces` raises comes as it is."""
        try:
            # Flushed: the digest of so many bytes would take too long at every read.
            with replacing(self._path(name)) as temporary:
                self._reserve(temporary, num_bytes)
                digest = hashlib.sha256()
                num_written = 0
                with temporary.open("r+b") as file:
                    for piece in _marking_errors(pieces):
                        num_written += len(piece)
                        if num_written > num_bytes:
                            break
                        digest.update(piece)
                        file.write(piece)
                if num_written != num_bytes or digest.hexdigest() != sha256:
                    raise ValueError(f"it has other bytes than the {num_bytes} of SHA-256 {sha256}")
        except _SourceError as error:
            raise error.source from None
        except OSError as error:
            self._complain(error)
            return False
        return True

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """One thread of all processes at a time for a name; the others wait."""
        # Few files, and none is removed: whoever removed one that others wait for would let two in.
        path = self.folder / "locks" / name[:2]
        with ExitStack() as lock:
            try:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                lock.enter_context(_locked(path))
            except OSError as error:
                # A file system without locks: two may fetch the same file, and each keeps a whole one.
                self._complain(error)
            yield

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name

    def _reserve(self, temporary: Path, num_bytes: int) -> None:
        """Give a new file its length, after making room for it. OSError when there is none."""
        if num_bytes > self.max_bytes:
            raise OSError(errno.EFBIG, f"{num_bytes} bytes are more than the {self.max_bytes} that are kept")
        with _locked(self.folder / "usage") as descriptor:
            used_bytes = self._read_usage(descriptor)
            spare_bytes = self._spare_bytes()
            if used_bytes + num_bytes > self.max_bytes or num_bytes > spare_bytes:
                target_bytes = min(int(LOW_WATER * self.max_bytes), used_bytes + spare_bytes) - num_bytes
                used_bytes = self._evict(max(0, target_bytes))
            has_room = used_bytes + num_bytes <= self.max_bytes and num_bytes <= self._spare_bytes()
            if has_room:
                used_bytes += num_bytes
            # First: a kill after it leaves the count too high.
            os.pwrite(descriptor, b"%0*d" % (USAGE_DIGITS, used_bytes), 0)
            if has_room:
                # Before it is written, and under the lock: whoever counts the files counts all of it.
                os.truncate(temporary, num_bytes)
        if not has_room:
            raise OSError(errno.ENOSPC, f"there is no room for {num_bytes} bytes beside {used_bytes}")

    def _spare_bytes(self) -> int:
        """The bytes that may still be written to the disk."""
        disk = os.statvfs(self.folder)
        return int((disk.f_bavail - MIN_FREE_RATIO * disk.f_blocks) * disk.f_frsize)

    def _read_usage(self, descriptor: int) -> int:
        stored = os.pread(descriptor, USAGE_DIGITS, 0)
        if len(stored) == USAGE_DIGITS and stored.isdigit():
            return int(stored)
        # A new cache, or one whose count was lost.
        return sum(entry.size for entry in self._scan())

    def _scan(self) -> list[_Entry]:
        """All entries, and what is half written; what was left half written is removed."""
        entries: list[_Entry] = []
        oldest_s = time.time() - STALE_S
        for folder in self.folder.iterdir():
            if not ENTRY_FOLDER.fullmatch(folder.name) or folder.is_symlink():
                continue
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as files:
                for file in files:
                    # Whoever names a folder that holds other things loses none of them.
                    if not ENTRY_FILE.fullmatch(file.name):
                        continue
                    with suppress(FileNotFoundError):
                        status = file.stat(follow_symlinks=False)
                        if file.name.startswith(".") and status.st_mtime < oldest_s:
                            os.unlink(file.path)
                            continue
                        entries.append(_Entry(status.st_mtime_ns, status.st_size, file.path))
        return entries

    def _evict(self, target_bytes: int) -> int:
        """Remove what was read longest ago until no more than so many bytes are left; returns how many are."""
        entries = self._scan()
        used_bytes = sum(entry.size for entry in entries)
        entries.sort(key=lambda entry: entry.read_ns)
        for entry in entries:
            if used_bytes <= target_bytes:
                break
            # What is being written keeps its room.
            if os.path.basename(entry.path).startswith("."):
                continue
            with suppress(FileNotFoundError):
                # Whoever has it open reads it to its end.
                os.unlink(entry.path)
            used_bytes -= entry.size
        return used_bytes

    def _complain(self, error: OSError) -> None:
        # A cache of no bytes is one that nobody asked for.
        if self.max_bytes > 0 and not self._has_complained:
            self._has_complained = True
            logger.warning("Remote shards are read, and not kept in %s (%s).", self.folder, error)


def cache_name(*parts: object) -> str:
    """The name of an entry: it says nothing of the place that the bytes are from."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


class _SourceError(Exception):
    """An error of whoever gives the pieces of a file, which is none of the disk's."""

    def __init__(self, source: Exception):
        super().__init__(str(source))
        self.source = source


def _marking_errors(pieces: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from pieces
    except Exception as error:
        raise _SourceError(error) from error


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold the lock of a file, made where there is none; its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        # Closing it ends the lock, as the end of the process does.
        os.close(descriptor)
