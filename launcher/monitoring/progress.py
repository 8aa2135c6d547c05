"""What `chorus run` shows while it works: one live bar on a terminal, plain lines elsewhere.

A stage's progress comes from the rows that its processes append to metrics.jsonl; the times left are
estimated from the pace of the newest rows.
"""

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from launcher.formatting import duration
from launcher.plain_text import make_console, printable
from launcher.run_files import parse_metrics_row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

# Rows that the pace is measured over: enough to smooth single steps, few enough to follow a change of load.
PACE_ROWS = 20
SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_MARKS = 1.0
SHOWN = {
    "loss": "loss {:.3f}",
    "validation/cer": "validation CER {:.1%}",
    "validation/masked_accuracy": "masked accuracy {:.1%}",
    "audio_s_per_s": "{:.1f} s of audio per s",
}


class MetricsTail:
    """Reads the rows that were appended to a metrics file since the last look.

    A file that got shorter was truncated by a resumed stage and is read on from its new end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        if path.exists():
            self._offset = path.stat().st_size

    def new_rows(self) -> list[dict[str, Any]]:
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            self._offset = 0
            return []
        # As long as before: nothing was written since.
        if size <= self._offset:
            self._offset = size
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        # A line without its end is being written; it is read next time.
        whole_lines = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole_lines)
        rows = []
        for line in whole_lines.splitlines():
            row = parse_metrics_row(line)
            if row is not None:
                rows.append(row)
        return rows


class Pace:
    """Seconds per step over the newest rows."""

    def __init__(self) -> None:
        self._marks: deque[tuple[int, float]] = deque(maxlen=PACE_ROWS)
        self._first_step_s: float | None = None

    def add(self, row: dict[str, Any]) -> None:
        step = row.get("step")
        written = row.get("time")
        if not isinstance(step, int) or not isinstance(written, int | float):
            return
        if self._marks:
            last_step, _ = self._marks[-1]
            if step == last_step:
                # Validation and saves write rows of a step that has one already.
                return
            if step < last_step:
                # The stage has resumed from an earlier checkpoint.
                self._marks.clear()
        if not self._marks:
            self._first_step_s = row.get("step_s")
        self._marks.append((step, written))

    def step_s(self) -> float | None:
        """Return the seconds per step; of a single row what it says itself, None when that is nothing."""
        if len(self._marks) < 2:
            return self._first_step_s
        first_step, first_time = self._marks[0]
        last_step, last_time = self._marks[-1]
        # Clocks may be set back between two rows.
        return max(0.0, last_time - first_time) / (last_step - first_step)


class Display(ABC):
    """Shows the stages of a run; `say` prints a line that stays."""

    @abstractmethod
    def say(self, text: str) -> None: ...

    def begin(self, stage: str, steps: int, later_steps: int = 0) -> None:
        """Start to show a stage of so many steps, with so many steps in the stages after it."""
        self._stage = stage
        self._steps = steps
        self._later_steps = later_steps
        self._pace = Pace()
        self._row: dict[str, Any] = {}

    def update(self, rows: list[dict[str, Any]]) -> None:
        """Take in new rows of metrics.jsonl."""
        for row in rows:
            self._pace.add(row)
            # Rows of steps, validations and saves hold different keys; the last of each is shown.
            self._row |= row
        self._show()

    def count(self, label: str, done: int, total: int) -> None:
        """Show how much of some work in this process is done, and about how long the rest of it takes."""
        now_s = time.monotonic()
        if label != self._row.get("label"):
            self._pace = Pace()
            self._next_mark_s = now_s
        # Thousands of small pieces may be done in a second, and the pace is that of many seconds.
        if now_s >= self._next_mark_s:
            self._pace.add({"step": done, "time": now_s})
            self._next_mark_s = now_s + SECONDS_BETWEEN_MARKS
        self._row = {"label": label, "step": done}
        self._steps = total
        self._show()

    @abstractmethod
    def end(self) -> None:
        """Stop to show the current stage."""

    @abstractmethod
    def _show(self) -> None: ...

    def _line(self) -> str:
        """Return where the stage is, on one line."""
        line = f"{self._stage}: {self._row.get('label', 'step')} {self._row['step']}/{self._steps}"
        details = self._details()
        if details:
            line += f", {details}"
        return line

    def _details(self) -> str:
        parts = []
        for key, template in SHOWN.items():
            if key not in self._row:
                continue
            value = self._row[key]
            # A number that is not finite is null in metrics.jsonl.
            if value is None:
                value = math.nan
            parts.append(template.format(value))

        step_s = self._pace.step_s()
        steps_left = self._steps - self._row.get("step", 0)
        if step_s is not None and steps_left > 0:
            left_s = step_s * steps_left
            parts.append(f"{duration(left_s)} left")
            if self._later_steps:
                parts.append(f"about {duration(left_s + step_s * self._later_steps)} left of the run")
        return ", ".join(parts)


class PlainDisplay(Display):
    """Lines for a log file."""

    def __init__(self, stream: TextIO, seconds_between_lines: float = SECONDS_BETWEEN_LINES) -> None:
        self._stream = stream
        self._seconds_between_lines = seconds_between_lines

    def say(self, text: str) -> None:
        # Whoever read this has gone, or its disk is full: no reason to end a training, of which the run folder has all.
        with suppress(OSError):
            print(text, file=self._stream, flush=True)

    def begin(self, stage: str, steps: int, later_steps: int = 0) -> None:
        super().begin(stage, steps, later_steps)
        self._last_line = time.monotonic()
        self._shown_step = -1

    def _show(self, at_once: bool = False) -> None:
        step = self._row.get("step")
        # Nothing was reported yet, or nothing new.
        if step is None or step == self._shown_step:
            return
        due = time.monotonic() - self._last_line >= self._seconds_between_lines
        if due or at_once or step == self._steps:
            self._last_line = time.monotonic()
            self._shown_step = step
            self.say(self._line())

    def end(self) -> None:
        self._show(at_once=True)


class TerminalDisplay(Display):
    """A live bar on a terminal."""

    def __init__(self, console: "Console | None" = None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[details]}", markup=False),
        )
        self._progress = Progress(*columns, console=console, transient=True)
        self._task: TaskID | None = None  # between stages

    def say(self, text: str) -> None:
        # The terminal may be gone.
        with suppress(OSError):
            self._progress.console.print(printable(text), highlight=False, markup=False)

    def begin(self, stage: str, steps: int, later_steps: int = 0) -> None:
        self.end()
        super().begin(stage, steps, later_steps)
        self._progress.start()
        self._task = self._progress.add_task(stage, total=steps, details="")

    def _show(self) -> None:
        if self._task is None:
            return
        description = self._stage
        # Of work in this process, such as "utterances of train".
        if "label" in self._row:
            description += f" {self._row['label']}"
        self._progress.update(
            self._task,
            total=self._steps,
            completed=self._row.get("step", 0),
            description=printable(description),
            details=self._details(),
        )

    def end(self) -> None:
        if self._task is None:
            return
        self._progress.remove_task(self._task)
        self._progress.stop()
        self._task = None
        if "step" in self._row:
            self.say(self._line())


def open_display(stream: TextIO) -> Display:
    """Return the display that suits where the output goes."""
    if stream.isatty():
        # The bar moves the cursor; what others call a stage is made printable where it is shown.
        return TerminalDisplay(make_console())
    return PlainDisplay(stream)
