"""One launcher at a time: the lease of a run, an object that its holder writes anew every few seconds.

Another launcher is refused while the lease changes. A lease that nobody releases, since its launcher was killed, is
taken over when it has been seen not to change for as long as its holder promised; no host's clock is compared with
another's. Two that take over at the same moment: a store with conditional writes gives it to one. For a store without
them, each writes its claim, waits, and has it only if its own is there then.

A holder that finds another claim in its place has lost the run. It writes nothing to the store from then on.
"""

import functools
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from data.files import parse_json
from launcher.errors import ConfigError
from launcher.remote_run.object_store import ChangedError, ObjectStore, describe, is_refusal, retrying

LEASE = "lease.json"
RENEW_S = 10.0
# Several renewals may fail, and a busy launcher be late, before anybody takes the run from it.
SILENCE_S = 60.0
# How often another's lease is looked at.
LOOK_S = 2.0
# For a store without conditions: longer than a claim takes to be seen.
SETTLE_S = 3.0

logger = logging.getLogger(__name__)


class _Claim(BaseModel, strict=True):
    """What the lease of a run says."""

    claim: str
    host: str = Field(max_length=300)
    process: int
    # Of the folder in which the holder works.
    folder: str
    renewed: int
    silence_s: float = Field(gt=0, le=3600)
    released: bool = False


class Lease:
    """This launcher's claim to a run. `acquire` before anything else, `release` at the end."""

    def __init__(self, store: ObjectStore, folder: str, on_loss: Callable[[], None]) -> None:
        """`folder` names the folder that this launcher works in, which no other one has locked. `on_loss` is called,
        in a thread, when another launcher has taken the run over."""
        self.lost_to = ""
        self._on_loss = on_loss
        self._store = store
        self._claim = _Claim(
            claim=uuid.uuid4().hex,
            host=socket.gethostname()[:300],
            process=os.getpid(),
            folder=folder,
            renewed=0,
            silence_s=SILENCE_S,
        )
        self._version: str | None = None
        self._confirmed_s = -float("inf")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_always, name="lease", daemon=True)

    def acquire(self, say: Callable[[str], None], check_stop: Callable[[], None]) -> None:
        """Take the lease, and renew it from now on. ConfigError while another launcher renews it, or where the store
        refuses; DistributedError where it does not answer."""
        while True:
            content, version = retrying(self._store, "read", lambda: self._store.read_version(LEASE))
            holder = _parse(content)
            if holder is not None and not holder.released and holder.folder != self._claim.folder:
                say(
                    f"{self._store.url} is claimed by {_name(holder)}; looks for {holder.silence_s:.0f} s whether that "
                    "is at work."
                )
                content, version = self._watch(holder, check_stop)
            began_s = time.monotonic()
            try:
                self._version = retrying(self._store, "write", functools.partial(self._write, version))
            except ChangedError:
                # Somebody else was faster, or this one's own first attempt did arrive.
                continue
            if not self._store.has_conditions:
                time.sleep(SETTLE_S)
            content, version = retrying(self._store, "read", lambda: self._store.read_version(LEASE))
            holder = _parse(content)
            if holder is None or holder.claim != self._claim.claim:
                continue
            self._version = version
            self._confirmed_s = began_s
            self._thread.start()
            return

    def is_confirmed(self) -> bool:
        """Whether nobody can have taken the run over: the lease was renewed a short time ago."""
        return not self.lost_to and time.monotonic() - self._confirmed_s < self._claim.silence_s / 2

    def release(self) -> None:
        """Let the next launcher have the run at once, where the store answers."""
        self._ended.set()
        self._thread.join(timeout=2 * RENEW_S)
        if self._thread.is_alive() or self.lost_to:
            return
        self._claim = self._claim.model_copy(update={"released": True})
        try:
            self._renew()
        except Exception as error:
            # The next launcher sees that nobody renews it.
            logger.info("The lease of %s could not be released: %s", self._store.url, describe(error))

    def _watch(self, holder: _Claim, check_stop: Callable[[], None]) -> tuple[bytes | None, str | None]:
        """Return the lease when it has not changed for as long as its holder promised. ConfigError when it has."""
        content, version = None, None
        until_s = time.monotonic() + holder.silence_s
        while time.monotonic() < until_s:
            check_stop()
            time.sleep(min(LOOK_S, holder.silence_s / 4))
            content, version = retrying(self._store, "read", lambda: self._store.read_version(LEASE))
            seen = _parse(content)
            if seen is None or seen.released:
                break
            if seen != holder:
                raise ConfigError(
                    f"The run folder {self._store.url} is in use by {_name(seen)}. Wait for it, stop it (kill -TERM), "
                    "or choose another folder with --run-dir."
                )
        return content, version

    def _write(self, version: str | None) -> str | None:
        content = json.dumps(self._claim.model_dump()).encode()
        return self._store.replace(LEASE, content, version)

    def _renew_always(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                self._renew()
            # A store that fails for a while is asked again; whether anybody took over is seen then.
            except Exception as error:
                logger.info("The lease of %s could not be renewed: %s", self._store.url, describe(error))
            if self.lost_to:
                return

    def _renew(self) -> None:
        began_s = time.monotonic()
        content, version = self._store.read_version(LEASE)
        holder = _parse(content)
        if holder is not None and holder.claim != self._claim.claim:
            self.lost_to = _name(holder)
            self._on_loss()
            return
        self._claim = self._claim.model_copy(update={"renewed": self._claim.renewed + 1})
        try:
            self._version = self._write(version)
        except ChangedError:
            # It is read again at the next renewal, which sees by whom.
            return
        self._confirmed_s = began_s


def read_holder(store: ObjectStore) -> dict[str, Any] | None:
    """Who claims a run: host, process, and how often it has renewed that; None when nobody does.

    Whether it is still there, only a second look tells.
    """
    try:
        holder = _parse(store.read(LEASE))
    except Exception as error:
        if is_refusal(error):
            return None
        raise
    if holder is None or holder.released:
        return None
    return {"host": holder.host, "process": holder.process, "renewed": holder.renewed}


def _parse(content: bytes | None) -> _Claim | None:
    """What a lease says; None where it is no lease, which nobody holds."""
    if content is None:
        return None
    try:
        return _Claim.model_validate(parse_json(content))
    except (ValueError, ValidationError):
        return None


def _name(holder: _Claim) -> str:
    host = "".join(character for character in holder.host if character.isprintable())
    return f"process {holder.process} on {host}"
