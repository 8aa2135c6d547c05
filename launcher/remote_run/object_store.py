"""The objects of a run in a store: each is read, written, copied and removed whole, by its name below one URL.

Nothing here lists: which objects there are, the run's inventory says (inventory.py). Errors are those of the store's
library; `is_refusal` and `describe` tell what a user can do about one.
"""

import asyncio
import concurrent.futures
import errno
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fsspec.asyn import AsyncFileSystem, sync
from fsspec.callbacks import Callback

from data.errors import DataError
from data.redaction import has_credentials, redact
from data.remote import stores
from data.remote.remote_file import read_pieces
from data.remote.retrying import RetryPolicy, is_lasting
from data.remote.stores import MIN_BYTES_PER_S, Store
from launcher.errors import ConfigError, DistributedError

# Where runs may be kept: stores that put an object in place whole. Files and memory serve tests.
PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "obs", "cos", "file", "memory")
RUN_URL = re.compile(r"([a-z0-9]+)://[^\s?#*\[\]\x00-\x1f\x7f]+")
# A larger object goes in parts of so many bytes, as many at once: what an upload holds in memory is bounded by both.
PART_BYTES = 2**23
PARTS_AT_ONCE = 4
# How often an upload is looked at.
WATCH_S = 0.25
# How long a store that does not answer is asked again before a run begins.
OPEN_S = 60.0
MAX_REASON_CHARACTERS = 300
# Of an inventory or a lease, which are held whole: hundreds of thousands of files.
MAX_SMALL_BYTES = 2**26
PRECONDITION_STATUSES = (409, 412)
NOT_IMPLEMENTED = 501


class ChangedError(Exception):
    """An object is not the one that was to be replaced: somebody else has written it."""


def check_run_url(url: str) -> None:
    """Refuse (ConfigError) a URL that no run is kept at."""
    if has_credentials(url):
        raise ConfigError(
            "The URL of the run folder has a secret in it, which would come into logs and reports. Give it without: "
            "credentials come from the environment, or from the files of the store's own tools."
        )
    match = RUN_URL.fullmatch(url)
    if match is None or match[1] not in PROTOCOLS or "::" in url or "/../" in f"{url}/":
        raise ConfigError(
            f"A run cannot be kept at {redact(url)[:200]}. Give one URL of a folder in a bucket, such as "
            f"s3://bucket/run, of {', '.join(PROTOCOLS[:-2])}."
        )
    if not url.partition("://")[2].strip("/").partition("/")[2]:
        raise ConfigError(f"{url} names a bucket and no folder in it. Give the run one of its own, such as {url}/run.")


class ObjectStore(Store):
    """What is below one URL; safe to use from several threads.

    `has_conditions`: whether the store can refuse to replace an object that somebody else has written meanwhile, as far
    as it is known.
    """

    def __init__(self, url: str) -> None:
        check_run_url(url)
        self.url = url.rstrip("/")
        try:
            filesystem = stores.open_filesystem(self.url, "The run")
        except DataError as error:
            raise ConfigError(str(error)) from None
        super().__init__(filesystem)
        protocols = filesystem.protocol
        if isinstance(protocols, str):
            protocols = (protocols,)
        self._is_s3 = "s3" in protocols
        self.has_conditions = self._is_s3
        self._is_local = "file" in protocols

    def location(self, name: str) -> str:
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes | None:
        """The content of a small object, None when there is none."""
        content, _ = self.read_version(name)
        return content

    def read_version(self, name: str) -> tuple[bytes | None, str | None]:
        """The content of a small object and by what `replace` knows it; None for what is not there.

        ConfigError for one that is larger than anything of a run that is read whole.
        """
        version = None
        try:
            # One byte more than it may have is read of an object, whatever its size.
            if self._is_s3:
                content, version = self._read_s3(name)
            else:
                content = self._call("cat_file", stores.STALL_S, self.location(name), start=0, end=MAX_SMALL_BYTES + 1)
        except FileNotFoundError:
            return None, None
        if len(content) > MAX_SMALL_BYTES:
            raise ConfigError(
                f"{self.location(name)} has more than {MAX_SMALL_BYTES >> 20} MiB, and no such file of a run has. "
                "Somebody else wrote it: choose another --run-dir, or put the object back from a copy."
            )
        return content, version

    def _read_s3(self, name: str) -> tuple[bytes, str]:
        filesystem = self._filesystem
        bucket, key, _ = filesystem.split_path(self.location(name))

        async def get() -> tuple[bytes, str]:
            response = await filesystem._call_s3("get_object", Bucket=bucket, Key=key)
            async with response["Body"] as body:
                return await body.read(MAX_SMALL_BYTES + 1), response["ETag"]

        answer: Any = sync(filesystem.loop, get, timeout=stores.STALL_S)
        return answer

    def write(self, name: str, content: bytes) -> None:
        """Put a small object in place."""
        self._prepare_local(name)
        self._call("pipe_file", stores.STALL_S + len(content) / MIN_BYTES_PER_S, self.location(name), content)

    def replace(self, name: str, content: bytes, version: str | None) -> str | None:
        """Put a small object in place of that version, None where there was none; returns the new version.

        ChangedError when another one is there. A store without conditions does not notice.
        """
        if not self.has_conditions:
            self.write(name, content)
            return None
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            answer = self._call("pipe_file", stores.STALL_S, self.location(name), content, **condition)
        except Exception as error:
            if _status(error) in PRECONDITION_STATUSES:
                raise ChangedError(name) from None
            if _status(error) != NOT_IMPLEMENTED:
                raise
            # Of the stores that speak S3, some do not know conditions.
            self.has_conditions = False
            self.write(name, content)
            return None
        return answer["ETag"]

    def upload(self, name: str, path: Path, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Put a file of any size in place. TimeoutError when nothing moves for a while, or `is_stopped` says so."""
        self._prepare_local(name)
        if not isinstance(self._filesystem, AsyncFileSystem):
            self._filesystem.put_file(str(path), self.location(name))
            return
        progress = Callback()
        options: dict[str, Any] = {}
        if self._is_s3:
            options = {"chunksize": PART_BYTES, "max_concurrency": PARTS_AT_ONCE}
        loop: Any = self._filesystem.loop
        transfer = self._filesystem._put_file(str(path), self.location(name), callback=progress, **options)
        task = asyncio.run_coroutine_threadsafe(transfer, loop)
        # What may pass between two signs of life: a round of parts, or all of a file that goes in one piece.
        piece_bytes = min(path.stat().st_size, 2 * PART_BYTES * PARTS_AT_ONCE)
        patience_s = stores.STALL_S + piece_bytes / MIN_BYTES_PER_S
        moved_s = time.monotonic()
        value = progress.value
        while not concurrent.futures.wait([task], timeout=WATCH_S).done:
            if progress.value != value:
                value = progress.value
                moved_s = time.monotonic()
            if is_stopped() or time.monotonic() - moved_s > patience_s:
                task.cancel()
                raise TimeoutError(f"the store took {value} bytes and no more for {patience_s:.0f} s")
        task.result()

    def pieces(self, name: str, policy: RetryPolicy) -> Iterator[bytes]:
        """The content of an object of any size, in pieces. FileNotFoundError where there is none, DistributedError
        where the store does not answer."""
        try:
            yield from read_pieces(self, self.location(name), policy)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise DistributedError(
                f"{self.location(name)} could not be read for {policy.retry_s:.0f} s: {describe(error)}. Give the same "
                "command again when the store answers; what has been fetched is not fetched again."
            ) from None

    def copy(self, name: str, new_name: str) -> None:
        """Copy an object within the store."""
        self._prepare_local(new_name)
        # The store copies; nothing tells how far it is.
        self._call("cp_file", 60 * stores.STALL_S, self.location(name), self.location(new_name))

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        try:
            self._call("rm_file", stores.STALL_S, self.location(name))
        except FileNotFoundError:
            return

    def _prepare_local(self, name: str) -> None:
        if self._is_local:
            Path(self._filesystem._strip_protocol(self.location(name))).parent.mkdir(parents=True, exist_ok=True)


def is_refusal(error: BaseException) -> bool:
    """Whether an error says that the store will not have this user there, or that there are no credentials."""
    # botocore's NoCredentialsError and PartialCredentialsError are no errors of the system.
    has_none = "Credentials" in type(error).__name__
    return has_none or isinstance(error, PermissionError) or _status(error) in (401, 403)


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room."""
    return _status(error) == 507 or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))


def describe(error: BaseException) -> str:
    """What went wrong, on one line and without secrets."""
    text = " ".join(str(error).split()) or type(error).__name__
    if is_full(error):
        text = f"it has no room ({text})"
    return redact(text)[:MAX_REASON_CHARACTERS]


def retrying(store: ObjectStore, doing: str, attempt: Callable[[], Any]) -> Any:
    """What an attempt returns, made again while the store does not answer. ConfigError where it refuses, or its bucket
    is not there; DistributedError where it does not answer for a minute."""
    retries = RetryPolicy(retry_s=OPEN_S).begin()
    while True:
        try:
            return attempt()
        except ChangedError:
            raise
        # Every store raises errors of its own.
        except Exception as error:
            if is_refusal(error):
                raise ConfigError(
                    f"The run folder {store.url} cannot be used: the store will not let this user {doing} there "
                    f"({describe(error)}). Give the credentials that it finds (AWS_* in the environment, or the files "
                    "of the store's own tools) the right to read, write and delete below it, or choose another "
                    "--run-dir."
                ) from None
            if isinstance(error, FileNotFoundError):
                raise ConfigError(
                    f"The run folder {store.url} cannot be used: its bucket is not there ({describe(error)}). Make the "
                    "bucket, or correct the URL."
                ) from None
            if is_lasting(error) or not retries.can_retry(store.url, error):
                raise DistributedError(
                    f"The store of the run folder {store.url} does not answer: to {doing} there failed for "
                    f"{time.monotonic() - retries.began_s:.0f} s, at last with {describe(error)}. Nothing was started; "
                    "give the same command again when it does."
                ) from None


def _status(error: BaseException) -> int | None:
    """The status of the answer that an error is about, where the store's library keeps it."""
    cause: Any = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        cause = cause.__cause__
    return None
