"""What `chorus transcribe` shows of long work on standard error: a line that changes on a terminal, plain lines in a
pipe. Short work shows nothing."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from launcher.formatting import duration
from launcher.plain_text import raw_stream

# Work that is done before is not worth a line.
SILENT_S = 2.0
SECONDS_BETWEEN_CHANGES = 0.2
SECONDS_BETWEEN_LINES = 10.0


class TranscriptionProgress:
    """Counts the seconds of speech that are done, from several threads; a context that leaves the line clear."""

    def __init__(self, names: Sequence[str], quiet: bool = False):
        self._names = names
        self._quiet = quiet
        self._lock = threading.Lock()
        self._start_s = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._next_s = self._start_s + (SILENT_S if self._is_terminal else SECONDS_BETWEEN_LINES)
        self._done_s: dict[int, float] = {}
        self._is_shown = False

    def __enter__(self) -> "TranscriptionProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def of_recording(self, number: int) -> Callable[[float, float], None]:
        """`update` for one recording."""
        return lambda done_s, seconds: self.update(number, done_s, seconds)

    def update(self, number: int, done_s: float, seconds: float) -> None:
        """So many seconds of recording `number` are done, of so many."""
        with self._lock:
            self._done_s[number] = done_s
            now_s = time.monotonic()
            if self._quiet or now_s < self._next_s:
                return
            total_s = sum(self._done_s.values())
            speed = total_s / (now_s - self._start_s)
            line = f"{self._names[number]}: {duration(done_s)} of {duration(seconds)}, {speed:.0f} s of audio per s"
            if len(self._names) > 1:
                line = f"recording {number + 1} of {len(self._names)}, {line}"
            if self._is_terminal:
                self._next_s = now_s + SECONDS_BETWEEN_CHANGES
                # Back to the start of the line, and clear it.
                raw_stream(sys.stderr).write("\r\x1b[K")
                print(line, end="", file=sys.stderr, flush=True)
                self._is_shown = True
            else:
                self._next_s = now_s + SECONDS_BETWEEN_LINES
                print(f"chorus: {line}", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the line away, so that something else can be printed."""
        with self._lock:
            if self._is_shown:
                raw_stream(sys.stderr).write("\r\x1b[K")
                sys.stderr.flush()
                self._is_shown = False
