"""Reads that are tried again: which errors pass, how long the pauses are, and when it ends."""

import errno
import itertools
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from data.files import NoRegularFileError

# Each pause is this many times the one before, up to the longest: a store that restarts is given time.
PAUSE_GROWTH = 2
MAX_PAUSE_S = 15.0
# A store may ask for a pause in Retry-After; longer than this it would look like a hang.
MAX_ASKED_PAUSE_S = 60.0
# Failures that are logged one by one: a store that answers one request in a hundred badly is asked millions of times.
LOGGED_FAILURES = 20
# What the system says of a path that is what it is: another attempt reads the same.
LASTING_ERRNOS = (errno.EACCES, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EPERM, errno.ELOOP)

logger = logging.getLogger(__name__)


class RefusedError(PermissionError):
    """A store that answers, and will not give the file: credentials are missing, or the request is not to its taste."""


class BusyError(OSError):
    """A store that asks to be left alone for so many seconds."""

    def __init__(self, message: str, pause_s: float):
        super().__init__(message)
        self.pause_s = pause_s


def is_lasting(error: Exception) -> bool:
    """Whether an error would come again at once: what is missing, what is forbidden, and what is no file."""
    if isinstance(error, FileNotFoundError | PermissionError | NoRegularFileError):
        return True
    return isinstance(error, OSError) and error.errno in LASTING_ERRNOS


@dataclass(frozen=True)
class RetryPolicy:
    """Attempts until one succeeds, `attempts` are used, or the next would begin after `retry_s` seconds.

    `failures` numbers those of all reads under this policy: the log names the first of them, then the 32nd, the 64th...
    """

    retry_s: float = 60.0
    first_pause_s: float = 0.5
    attempts: int | None = None
    failures: Iterator[int] = field(default_factory=lambda: itertools.count(1), compare=False)

    def begin(self) -> "Retries":
        return Retries(self)


@dataclass
class Retries:
    """One read and its failures."""

    policy: RetryPolicy
    failures: int = 0
    began_s: float = field(default_factory=time.monotonic)

    def can_retry(self, location: str, error: Exception) -> bool:
        """Wait for the next attempt and return True; False when the error lasts, or the policy is exhausted."""
        self.failures += 1
        if is_lasting(error) or self.failures == self.policy.attempts:
            return False
        pause_s = min(MAX_PAUSE_S, self.policy.first_pause_s * PAUSE_GROWTH ** min(self.failures - 1, 30))
        # All processes of a run lose a store at the same moment, and must not come back at the same moment.
        pause_s *= random.uniform(0.5, 1.0)  # noqa: S311 - spreads requests, and decides nothing
        if isinstance(error, BusyError):
            pause_s = max(pause_s, min(error.pause_s, MAX_ASKED_PAUSE_S))
        if time.monotonic() - self.began_s + pause_s > self.policy.retry_s:
            return False
        number = next(self.policy.failures)
        is_power_of_two = number & (number - 1) == 0
        if number <= LOGGED_FAILURES or is_power_of_two:
            logger.warning(
                "Reading %s failed (%r), failure %d; next attempt in %.1f s.", location, error, number, pause_s
            )
        time.sleep(pause_s)
        return True
