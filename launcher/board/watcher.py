"""Watches the runs below some folders, in a thread of its own: whoever asks gets what was seen last, at once."""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.board.watched_run import WatchedRun
from launcher.errors import ConfigError
from launcher.monitoring.run_discovery import find_runs

LOOK_S = 1.0
# Runs that were added or removed are noticed so often.
DISCOVERY_S = 10.0
YIELD_S = 0.001

logger = logging.getLogger(__name__)


class Watcher:
    """The runs by their names, refreshed about once a second. The lock of a run is held while it is read or shown."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """ConfigError for a folder that is not there."""
        self._folders = folders
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="chorus-board", daemon=True)
        self._next_discovery_s = 0.0
        self._broken: set[str] = set()
        self.runs: dict[str, WatchedRun] = {}
        self._discover()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            look_again_s = time.monotonic() + LOOK_S
            unread = self.look()
            # Long files are read on until it is time to look at all runs again.
            while unread and time.monotonic() < look_again_s and not self._stopped.is_set():
                unread = self._look_at(unread)
            self._stopped.wait(max(0.0, look_again_s - time.monotonic()))

    def look(self) -> list[WatchedRun]:
        """Look at every run; return those of which there is more to read."""
        if time.monotonic() >= self._next_discovery_s:
            try:
                self._discover()
            # A folder that was removed, or a disk that is gone for a while: its runs stay as they were seen last.
            except (ConfigError, OSError) as error:
                logger.warning("runs cannot be looked for: %s", error)
        return self._look_at(list(self.runs.values()))

    def _look_at(self, runs: list[WatchedRun]) -> list[WatchedRun]:
        unread = []
        for run in runs:
            if self._stopped.is_set():
                break
            with run.lock:
                has_more = self._refresh(run)
            if has_more:
                unread.append(run)
                # Whoever waits for the lock of a run that is read at once again would else never have it.
                time.sleep(YIELD_S)
        return unread

    def _discover(self) -> None:
        self._next_discovery_s = time.monotonic() + DISCOVERY_S
        folders = find_runs(self._folders)
        runs = {}
        for name, folder in folders.items():
            runs[name] = self.runs.get(name) or WatchedRun(name, folder)
        # As a whole: requests look at it from other threads.
        self.runs = runs

    def _refresh(self, run: WatchedRun) -> bool:
        try:
            has_more = run.refresh()
        # What no reader foresaw in one run's files must not hide the others.
        except Exception as error:
            if run.name not in self._broken:
                self._broken.add(run.name)
                logger.exception("the run in %s cannot be shown", run.run.path)
            problem = f"It cannot be shown: {type(error).__name__}. The log of the board has the traceback."
            run.show_problem(problem)
            return False
        self._broken.discard(run.name)
        return has_more
