"""A backend behind a bounded queue and a daemon thread, which training never waits for.

A library may start helper processes, talk to a server, hang or raise at any call; all of that happens in the thread.
The training thread only puts records on the queue. What the backend does, and what it cannot do, is written to
`logs/NAME.log` of the stage.
"""

import atexit
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from data.redaction import redact
from launcher.tracking.backend import Backend
from launcher.tracking.router_maps import RouterMaps

QUEUE_RECORDS = 4096
# Of the time that `close` may take, what is kept back to end helper processes.
_KILL_GRACE_S = 1.0
# An exit without `close` follows an error, whose message should not wait for a server.
_EXIT_TIMEOUT_S = 3.0

Record = Callable[[Backend], None]


class BackgroundWriter:
    """Sends rows and other records to one backend; images of the routers' loads are drawn on the way.

    `read_past_rows` reads the rows of earlier attempts; it is called in the thread.
    """

    def __init__(self, backend: Backend, logs: Path, read_past_rows: Callable[[], Iterable[dict[str, Any]]]) -> None:
        self.dropped = 0
        self._backend = backend
        self._log_file = logs / f"{backend.name}.log"
        self._read_past_rows = read_past_rows
        self._queue: queue.Queue[dict[str, Any] | Record | None] = queue.Queue(QUEUE_RECORDS)
        self._alive = True
        self._closed = False
        self._given_up = False
        # A daemon, because a library that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=f"tracking-{backend.name}", daemon=True)
        self._thread.start()

    def offer(self, record: dict[str, Any] | Record) -> None:
        """Hands a row, or a call of the backend, to the thread; dropped and counted when that is behind or gone."""
        if self._alive:
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(record)
                return
        self.dropped += 1

    def close(self, timeout_s: float) -> None:
        """Lets the thread finish; past `timeout_s` ends the backend's helper processes instead of waiting on."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        deadline_s = time.monotonic() + timeout_s
        drain_s = max(timeout_s - _KILL_GRACE_S, timeout_s / 2)
        drain_deadline_s = time.monotonic() + drain_s
        # None ends the thread once it has sent what is before it.
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=drain_s)
        self._thread.join(max(0.0, drain_deadline_s - time.monotonic()))

        if self._thread.is_alive():
            self._alive = False
            self._given_up = True
            message = f"did not finish within {drain_s:.0f} s and was ended"
            advice = self._backend.advice()
            if advice:
                message += f"; {advice}"
            self._note(message)
            # Without its helper processes the library's call returns, mostly with an error.
            self._backend.abandon(deadline_s)
            self._thread.join(max(0.0, deadline_s - time.monotonic()))

        with self._queue.mutex:
            self.dropped += sum(record is not None for record in self._queue.queue)
        if self.dropped:
            self._note(f"{self.dropped} records are in the run folder only")

    def _work(self) -> None:
        try:
            self._close_at_exit()
            self._note(self._backend.open(self._close_at_exit))
            maps = RouterMaps(self._read_past_rows())
            for record in iter(self._queue.get, None):
                if isinstance(record, dict):
                    self._backend.log(record)
                    is_due = maps.add(record)
                    if is_due:
                        self._send_images(maps)
                else:
                    self._try(record)
            if maps.has_new_loads():
                self._send_images(maps)
            self._backend.close()
        # A library may call sys.exit, which in a thread is an exception like others.
        except (Exception, SystemExit) as error:
            self._alive = False
            # One that was given up fails because its helper processes were ended.
            if not self._given_up:
                self._note(f"is off for the rest of this stage: {type(error).__name__}: {error}")
        finally:
            self._alive = False
            with contextlib.suppress(Exception, SystemExit):
                self._backend.release()

    def _send_images(self, maps: RouterMaps) -> None:
        self._try(lambda backend: backend.images(maps.step, maps.images()))

    def _try(self, record: Record) -> None:
        """Sends what is no row: if it fails, the rows still go on."""
        try:
            record(self._backend)
        except Exception as error:
            if not self._given_up:
                self._note(f"could not take a record: {type(error).__name__}: {error}")

    def _close_at_exit(self) -> None:
        """Makes an exit without `close` end the helpers.

        Exit hooks run last in, first out: this one has to come after those of a library, which may wait for a server
        without limit.
        """
        atexit.unregister(self.close)
        atexit.register(self.close, _EXIT_TIMEOUT_S)

    def _note(self, message: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        # Messages of libraries have several lines; the log has one for each note.
        line = redact(" ".join(message.split()))
        # A full disk must not reach training through this log.
        with contextlib.suppress(OSError):
            self._log_file.parent.mkdir(parents=True, exist_ok=True)
            with self._log_file.open("a") as file:
                file.write(f"{now} {line}\n")
