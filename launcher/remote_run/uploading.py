"""Uploads a run while it goes on, in a thread of the launcher for which no process of a stage ever waits.

What fails is tried again with growing pauses, and what was missed is uploaded then. A failure that repeats itself is an
event, and is said once.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from launcher.remote_run.mirror import Mirror
from launcher.remote_run.object_store import describe
from launcher.run_folder import RunFolder, write_json

LOOK_S = 1.0
# Between two looks that each have something to do.
SHORT_PAUSE_S = 0.05
MAX_PAUSE_S = 30.0
MAX_NAMED = 5
STATUS_S = 10.0
# In a row. A store that fails once in a while is no news in a run of weeks.
FAILURES_TOLD = 2


class Uploader:
    """The thread, and what it says of its work in `.upload.json` of the run folder."""

    def __init__(self, run: RunFolder, url: str, mirror: Mirror, say: Callable[[str], None]) -> None:
        self.problem = ""
        self._run = run
        self._url = url
        self._mirror = mirror
        self._say = say
        self._num_failures = 0
        self._failing_since_s = 0.0
        self._status: dict[str, Any] = {}
        self._is_finishing = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="upload", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, timeout_s: float, is_stopped: Callable[[], bool]) -> list[str]:
        """Upload what is left, for no longer than `timeout_s` and until `is_stopped`; return what is missing then."""
        deadline_s = time.monotonic() + timeout_s
        self._is_finishing = True
        self._wake.set()
        while self._thread.is_alive() and time.monotonic() < deadline_s and not is_stopped():
            self._thread.join(timeout=0.1)
        self._mirror.stop()
        self._wake.set()
        self._thread.join(timeout=LOOK_S)
        # A folder that cannot be listed any more is told by what else needs it.
        with suppress(OSError):
            self._mirror.refresh()
        missing = [*self._mirror.missing_sets(), *self._mirror.missing_files()]
        self._write_status(missing)
        return missing

    def _work(self) -> None:
        while not self._mirror.stopped:
            # Before the look: what is written during it is looked at again.
            is_finishing = self._is_finishing
            pause_s = LOOK_S
            try:
                is_done = self._mirror.look(everything=is_finishing)
                had_failed = self._num_failures > 0
                self._note_success()
                if is_done and is_finishing and not had_failed:
                    return
                if not is_done or is_finishing:
                    pause_s = SHORT_PAUSE_S
                self._write_status(self._mirror.missing_sets())
            # Every store raises errors of its own, and none of them may end the run.
            except Exception as error:
                self._note_failure(error)
                # What has come since is missing too.
                with suppress(OSError):
                    self._mirror.refresh()
                    self._write_status(self._mirror.missing_sets())
                if not is_finishing:
                    pause_s = min(MAX_PAUSE_S, LOOK_S * 2.0 ** min(self._num_failures, 10))
            self._wake.wait(pause_s)
            self._wake.clear()

    def _note_success(self) -> None:
        if self._num_failures >= FAILURES_TOLD:
            after_s = time.monotonic() - self._failing_since_s
            self._run.append_event("uploads_resumed", seconds=round(after_s, 3), failures=self._num_failures)
            self._tell(f"The store takes uploads again, after {after_s:.0f} s.")
        self._num_failures = 0
        self.problem = ""

    def _note_failure(self, error: Exception) -> None:
        if self._mirror.stopped:
            return
        self.problem = describe(error)
        if self._num_failures == 0:
            self._failing_since_s = time.monotonic()
        self._num_failures += 1
        if self._num_failures == FAILURES_TOLD:
            # Its disk may be what is full.
            with suppress(OSError):
                self._run.append_event("upload_failed", reason=self.problem)
            self._tell(f"Uploading to {self._url} failed, and is tried again; the run goes on: {self.problem}")

    def _tell(self, sentence: str) -> None:
        # The terminal may be gone, which must not end the uploads.
        with suppress(OSError, ValueError):
            self._say(sentence)

    def _write_status(self, missing: list[str]) -> None:
        failing_s = None
        if self._num_failures:
            # Coarse, so that the file is not written at every look.
            failing_s = (time.monotonic() - self._failing_since_s) // STATUS_S * STATUS_S
        status = {
            "url": self._url,
            "checkpoints": self._mirror.stored_checkpoints(),
            "num_missing": len(missing),
            "missing": missing[:MAX_NAMED],
            "problem": self.problem or None,
            "failing_s": failing_s,
        }
        if status == self._status:
            return
        with suppress(OSError):
            write_json(self._run.upload_file, status)
            self._status = status
