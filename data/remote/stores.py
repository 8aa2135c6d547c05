"""Remote stores: one attempt to read a range of a file, or a file from a position on.

fsspec opens what a URL names and finds the credentials, in the environment and in the user's own files; none is given
by a recipe, kept here or logged. Of web servers we read ourselves, on fsspec's session: we see whether the server
honoured the range, and never hold more than was asked for.

Errors are OSErrors, or of the store's library. FileNotFoundError and PermissionError say that another attempt is in
vain. Not read: answers that are compressed, and bytes from another position than was asked for.
"""

import errno
import re
import time
from collections.abc import Iterator
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from data.errors import DataError
from data.remote.retrying import BusyError, RefusedError

# Where shards may be read from. Others of fsspec, and chains of them with `::`, open what the content of a remote file
# names, files of this machine among it (`reference`).
PROTOCOLS = (
    *("http", "https", "ftp", "sftp", "ssh", "smb", "hdfs", "webhdfs", "hf"),
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "obs", "cos"),
    # Local files by another name, and files in this process, which tests use.
    *("file", "memory"),
)
URL = re.compile(r"([a-z0-9]+)://")
# A request that moves nothing for so long, or a transfer slower than this, has failed.
STALL_S = 30.0
MIN_BYTES_PER_S = 50_000
# Read at once of a stream; of a store where each piece is a request of its own, so much that latency does not count.
PIECE_BYTES = 2**20
RANGE_BYTES = 2**23
CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/")
# What a server says of this moment rather than of the file.
PASSING_STATUSES = (408, 421, 425, 429)


class NoRangesError(Exception):
    """A server that sends whole files, whatever range is asked for."""


class Store:
    """Files that fsspec reads; safe to use from several threads."""

    def __init__(self, filesystem: Any):
        self._filesystem = filesystem

    def read_range(self, location: str, start: int, size: int) -> bytes:
        """The bytes [start, start + size) of a file, fewer where it ends before. NoRangesError when only whole files
        are to be had."""
        try:
            return self._call("cat_file", STALL_S + size / MIN_BYTES_PER_S, location, start=start, end=start + size)
        except OSError as error:
            # What S3 says to a range that begins at the end of the file, or behind it.
            if error.errno == errno.EINVAL:
                return b""
            raise

    def stream(self, location: str, start: int) -> Iterator[bytes]:
        """The bytes of a file from a position on, in pieces of any length."""
        num_bytes = self._call("info", STALL_S, location)["size"]
        while start < num_bytes:
            piece = self.read_range(location, start, min(RANGE_BYTES, num_bytes - start))
            if not piece:
                raise OSError(f"it ends at byte {start} of {num_bytes}")
            start += len(piece)
            yield piece

    def _call(self, name: str, timeout_s: float, *arguments: Any, **options: Any) -> Any:
        filesystem = self._filesystem
        try:
            if isinstance(filesystem, AsyncFileSystem):
                # The coroutine itself: fsspec's own way around it waits without end for what never answers.
                function = getattr(filesystem, f"_{name}")
                return _call_in(filesystem.loop, function, *arguments, timeout=timeout_s, **options)
            return getattr(filesystem, name)(*arguments, **options)
        except Exception as error:
            # botocore's NoCredentialsError and PartialCredentialsError are no errors of the system.
            if "Credentials" in type(error).__name__:
                raise RefusedError(errno.EACCES, str(error)) from error
            raise


class WebStore(Store):
    """Files of a web server; whether it gives ranges is seen by what it answers, not by what it promises."""

    def read_range(self, location: str, start: int, size: int) -> bytes:
        timeout_s = STALL_S + size / MIN_BYTES_PER_S
        return _call_in(self._filesystem.loop, self._read_range, location, start, size, timeout=timeout_s)

    def stream(self, location: str, start: int) -> Iterator[bytes]:
        loop = self._filesystem.loop
        response = _call_in(loop, self._request, location, f"bytes={start}-", timeout=STALL_S)
        try:
            skipped = start
            if response.status == 206:
                first, _ = _content_range(response)
                if first != start:
                    raise OSError(f"the server sent byte {first} where byte {start} was asked for")
                skipped = 0
            elif response.status == 416:
                return
            waited_s = 0.0
            num_bytes = 0
            while True:
                began_s = time.monotonic()
                piece = _call_in(loop, response.content.read, PIECE_BYTES, timeout=STALL_S)
                if not piece:
                    return
                # Our own waiting alone: whoever takes the pieces may take its time.
                waited_s += time.monotonic() - began_s
                num_bytes += len(piece)
                if waited_s > STALL_S + num_bytes / MIN_BYTES_PER_S:
                    raise OSError(f"the server sent {num_bytes} bytes in {waited_s:.0f} s, and was given up")
                # A server without ranges begins at the beginning.
                num_skipped = min(skipped, len(piece))
                skipped -= num_skipped
                if num_skipped < len(piece):
                    yield piece[num_skipped:]
        finally:
            loop.call_soon_threadsafe(response.close)

    async def _read_range(self, location: str, start: int, size: int) -> bytes:
        response = await self._request(location, f"bytes={start}-{start + size - 1}")
        try:
            if response.status == 416:
                return b""
            if response.status != 206:
                raise NoRangesError
            first, last = _content_range(response)
            if first != start:
                raise OSError(f"the server sent byte {first} where byte {start} was asked for")
            num_bytes = min(size, last - first + 1)
            content = bytearray()
            while len(content) < num_bytes:
                piece = await response.content.read(num_bytes - len(content))
                if not piece:
                    raise OSError(f"the connection ended after {len(content)} of {num_bytes} bytes")
                content += piece
            return bytes(content)
        finally:
            # Whatever else the server would send is not read.
            response.close()

    async def _request(self, location: str, byte_range: str) -> Any:
        """The answer to a request, its body unread. Raises for all statuses but 200, 206 and 416."""
        import aiohttp

        filesystem = self._filesystem
        options = dict(filesystem.kwargs)
        # Compressed bytes would be of another length and another position.
        own_headers = {"Range": byte_range, "Accept-Encoding": "identity"}
        options["headers"] = {**options.get("headers", {}), **own_headers}
        # Of the whole body aiohttp would wait for five minutes at most, however large it is.
        options["timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=STALL_S, sock_read=STALL_S)
        session = await filesystem.set_session()
        try:
            response = await session.get(filesystem.encode_url(location), **options)
        except (aiohttp.TooManyRedirects, aiohttp.RedirectClientError):
            answer = "the server sends to another place without end, or to what is no web server"
            raise RefusedError(errno.EACCES, answer) from None
        except aiohttp.ClientResponseError as error:
            # Not the error itself: it holds the headers that were sent, and shows them where it is logged.
            seen = " ".join(error.message.split())[:200]
            raise OSError(f"the server's answer is no HTTP ({seen})") from None
        try:
            _check_status(response)
        except BaseException:
            response.close()
            raise
        return response


def _call_in(loop: Any, function: Any, *arguments: Any, timeout: float, **options: Any) -> Any:
    """What a coroutine of fsspec's thread returns. TimeoutError when it has not after so many seconds."""
    return sync(loop, function, *arguments, timeout=timeout, **options)


def _check_status(response: Any) -> None:
    status = response.status
    answer = f"the server answered {status} {response.reason or ''}".rstrip()
    if status in (404, 410):
        raise FileNotFoundError(errno.ENOENT, answer)
    if status in PASSING_STATUSES or status >= 500:
        asked = response.headers.get("Retry-After", "")
        if asked.isdecimal() and len(asked) < 10:
            raise BusyError(answer, float(asked))
        raise OSError(answer)
    if status not in (200, 206, 416):
        raise RefusedError(errno.EACCES, answer)
    if status != 416 and response.headers.get("Content-Encoding", "identity") != "identity":
        raise RefusedError(errno.EACCES, "the server sends the file compressed, though it was asked not to")


def _content_range(response: Any) -> tuple[int, int]:
    """The positions of the first and the last byte that a server says it sends."""
    stated = response.headers.get("Content-Range", "")
    match = CONTENT_RANGE.match(stated)
    if match is None:
        raise OSError(f"the server sent a part of the file and does not say which ({stated[:80]!r})")
    return int(match[1]), int(match[2])


def check_url(url: str) -> None:
    """Refuse (DataError) a URL of a protocol that is not one of `PROTOCOLS`, or of several."""
    match = URL.match(url)
    if match is None or match[1] not in PROTOCOLS or "::" in url:
        raise DataError(
            f"Shards are not read from {url}: its protocol may open other files than it names. Give one URL, without "
            f"`::`, of {', '.join(PROTOCOLS)}."
        )


def open_store(url: str) -> Store:
    """The store that a URL names. DataError for other protocols, for one whose library is not installed, and for
    settings of fsspec that it does not take."""
    check_url(url)
    filesystem = open_filesystem(url, "Shards")
    if url.startswith(("http://", "https://")):
        return WebStore(filesystem)
    return Store(filesystem)


def open_filesystem(url: str, what: str) -> Any:
    """What fsspec reads and writes a URL of an allowed protocol with. DataError, about `what` is stored there, where
    the protocol's library is not installed, and for settings of fsspec that it does not take."""
    try:
        filesystem, _ = fsspec.url_to_fs(url)
    except ImportError as error:
        protocol = url.partition("://")[0]
        package = "its package for fsspec"
        if protocol in ("s3", "s3a"):
            package = "`pip install 'chorus-asr[s3]'`"
        raise DataError(
            f"{what} at {url} cannot be read without a library for {protocol} ({error}): install {package}."
        ) from None
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{what} at {url} cannot be read: fsspec does not take the URL, or what FSSPEC_* and ~/.config/fsspec say "
            f"of its protocol ({error}). Correct them."
        ) from None
    return filesystem
