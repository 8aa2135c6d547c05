"""A remote file from its beginning to its end, over any number of lost connections."""

import io
from collections.abc import Generator
from typing import Any

from data.remote.retrying import RetryPolicy
from data.remote.stores import PIECE_BYTES, Store


def read_pieces(store: Store, location: str, policy: RetryPolicy) -> Generator[bytes, None, None]:
    """The bytes of a file in pieces; after a failure it goes on where it was. Raises what the last attempt raised."""
    position = 0
    begun_at = 0
    retries = policy.begin()
    while True:
        try:
            for piece in store.stream(location, position):
                position += len(piece)
                yield piece
                # A long file may lose its connection often; what counts is whether it gets on.
                if position - begun_at >= PIECE_BYTES:
                    retries = policy.begin()
                    begun_at = position
            return
        # Every store raises errors of its own.
        except Exception as error:
            if not retries.can_retry(location, error):
                raise


class RemoteFile(io.RawIOBase):
    """The same as a file that is only read forwards; errors that are none of the system become OSErrors."""

    def __init__(self, store: Store, location: str, policy: RetryPolicy):
        self._pieces = read_pieces(store, location, policy)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            try:
                self._rest = memoryview(next(self._pieces, b""))
            except OSError:
                raise
            except Exception as error:
                raise OSError(f"{type(error).__name__}: {error}") from error
        target = memoryview(buffer)
        num_bytes = min(len(target), len(self._rest))
        target[:num_bytes] = self._rest[:num_bytes]
        self._rest = self._rest[num_bytes:]
        return num_bytes

    def close(self) -> None:
        self._pieces.close()
        super().close()
