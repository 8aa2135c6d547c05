"""The metrics of a training stage, thinned as they are read: a run of a million rows takes as much memory as one of a
thousand, and only the rows that are kept are parsed.
"""

from array import array
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.monitoring.line_tail import LineTail
from launcher.monitoring.progress import PACE_ROWS, Pace
from launcher.run_files import parse_metrics_row
from launcher.run_folder import is_number
from launcher.tracking.metrics_log import expert_loads

# Of a curve; between half of them and all are kept.
MAX_POINTS = 800
# Numbers of a row, and layers with experts, that are kept: a row of somebody else's may have any number.
MAX_CURVES = 64
MAX_LAYERS = 128
MAX_EXPERTS = 512
MAX_NAME_CHARACTERS = 100
# Rows of these are few, and each is parsed.
VALIDATION = b'"validation'
SAVE = b'"save_stall_s"'
GOODPUT = b'"goodput/'
# What is drawn of the numbers of a row, and what is computed with.
NO_CURVES = ("step", "time", "epoch")


class ThinnedRows:
    """Evenly chosen rows, as one array of numbers for each name; NaN where a row has none.

    Every `stride`-th row is kept. When there are too many, every other one of them is dropped, and the stride doubles.
    """

    def __init__(self, max_columns: int = MAX_CURVES) -> None:
        self._max_columns = max_columns
        self._stride = 1
        self._num_offered = 0
        self.steps = array("q")
        self.times = array("d")
        self.columns: dict[str, array[float]] = {}

    def wants_next(self) -> bool:
        """Whether the next row is to be kept; each row is asked for once."""
        is_wanted = self._num_offered % self._stride == 0
        self._num_offered += 1
        return is_wanted

    def add(self, step: int, time: float | None, values: dict[str, float]) -> None:
        for name in values:
            if name not in self.columns and len(self.columns) < self._max_columns:
                self.columns[name] = array("f", [float("nan")]) * len(self.steps)
        for name, column in self.columns.items():
            column.append(_single(values.get(name)))
        self.steps.append(step)
        self.times.append(float("nan") if time is None else time)
        if len(self.steps) > MAX_POINTS:
            self.steps = self.steps[::2]
            self.times = self.times[::2]
            for name, column in self.columns.items():
                self.columns[name] = column[::2]
            self._stride *= 2


def _single(value: float | None) -> float:
    """A number in single precision, which has room up to 3e38."""
    if value is None or abs(value) > 3e38:
        return float("nan")
    return value


class StageCurves:
    """The metrics of one stage as far as they were read."""

    def __init__(self, metrics_file: Path, run_folder: Path) -> None:
        self._tail = LineTail(metrics_file, run_folder)
        self._forget()

    def _forget(self) -> None:
        self.training = ThinnedRows()
        self.validation = ThinnedRows()
        # The largest load of each layer's experts, over that of even shares.
        self.largest_loads = ThinnedRows(MAX_LAYERS)
        self.pace = Pace()
        self.last_row: dict[str, Any] = {}
        self.validation_s = 0.0
        self.save_s = 0.0
        self._loads: deque[dict[str, list[float]]] = deque(maxlen=PACE_ROWS)

    @property
    def problem(self) -> str:
        """Why the file is not read, in a sentence; empty where it is, or is not there yet."""
        return self._tail.problem

    @property
    def read_share(self) -> float:
        """How much of the file was read, as a fraction."""
        if self._tail.num_bytes == 0:
            return 1.0
        return min(1.0, self._tail.offset / self._tail.num_bytes)

    def refresh(self) -> tuple[bool, bool]:
        """Read on; return whether anything changed, and whether there is more to read now."""
        new = self._tail.read()
        if new.is_anew:
            self._forget()
        # Of a block of thousands of rows those are parsed that are kept, and the last ones, for what holds now.
        first_recent = len(new.lines) - PACE_ROWS
        for number, line in enumerate(new.lines):
            if VALIDATION in line or SAVE in line or GOODPUT in line:
                self._add_rare(line)
                continue
            is_wanted = self.training.wants_next()
            if is_wanted or number >= first_recent:
                self._add_training(line, is_wanted)
        return bool(new.lines) or new.is_anew, new.has_more

    def _add_training(self, line: bytes, is_wanted: bool) -> None:
        row = parse_metrics_row(line)
        if row is None:
            return
        loads = {}
        for layer, load in expert_loads(row):
            is_sound = isinstance(load, list) and 0 < len(load) <= MAX_EXPERTS and all(map(is_number, load))
            if is_sound and len(layer) <= MAX_NAME_CHARACTERS and len(loads) < MAX_LAYERS:
                loads[layer] = load
        if loads:
            self._loads.append(loads)
        values = _numbers(row)
        self.pace.add(row)
        self.last_row = values
        if is_wanted:
            self.training.add(row["step"], row.get("time"), values)
            largest = {}
            for layer, load in loads.items():
                largest[layer] = max(load) * len(load) / (sum(load) or 1.0)
            if largest:
                self.largest_loads.add(row["step"], row.get("time"), largest)

    def _add_rare(self, line: bytes) -> None:
        row = parse_metrics_row(line)
        if row is None:
            return
        self.validation_s += row.get("validation_s") or 0.0
        self.save_s += row.get("save_stall_s") or 0.0
        values = {}
        for name, value in _numbers(row).items():
            if name.startswith("validation/"):
                values[name] = value
        if values and self.validation.wants_next():
            self.validation.add(row["step"], row.get("time"), values)

    def goodput_rows(self) -> list[dict[str, Any]]:
        """The rows that goodput is measured over."""
        rows: list[dict[str, Any]] = []
        step_s = self.training.columns.get("step_s", ())
        waits = self.training.columns.get("data_wait", ())
        for number, step in enumerate(self.training.steps):
            row: dict[str, Any] = {"step": step, "time": self.training.times[number]}
            if number < len(step_s):
                row["step_s"] = step_s[number]
            if number < len(waits):
                row["data_wait"] = waits[number]
            # What is not a number is as good as not there.
            rows.append({key: value for key, value in row.items() if value == value})
        if rows and "step_s" in self.last_row and self.last_row["step"] > rows[-1]["step"]:
            rows.append(self.last_row)
        if rows:
            spent = {"validation_s": self.validation_s, "save_stall_s": self.save_s}
            rows.append({"step": rows[-1]["step"], "time": rows[-1].get("time"), **spent})
        return rows

    def mean_loads(self) -> dict[str, list[float]]:
        """The share of each expert of each layer over the last rows, one being even shares."""
        sums: dict[str, list[float]] = {}
        for loads in self._loads:
            for layer, load in loads.items():
                total = sum(load) or 1.0
                shares = [value * len(load) / total for value in load]
                before = sums.get(layer)
                if before is None or len(before) != len(shares):
                    before = [0.0] * len(shares)
                sums[layer] = [mean + share / len(self._loads) for mean, share in zip(before, shares, strict=True)]
        return sums


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row by their names."""
    numbers = {}
    for name, value in row.items():
        if is_number(value) and len(name) <= MAX_NAME_CHARACTERS:
            numbers[name] = value
        if len(numbers) == MAX_CURVES:
            break
    return numbers


def curve_values(rows: ThinnedRows) -> dict[str, Any]:
    """Curves for JSON: the steps, and for each name a value or None for each step."""
    curves = {}
    for name, column in rows.columns.items():
        if name not in NO_CURVES:
            curves[name] = rounded(column)
    return {"steps": list(rows.steps), "curves": curves}


def rounded(values: Sequence[float]) -> list[float | None]:
    """Values in as many digits as single precision has; None for what is no number."""
    numbers: list[float | None] = []
    for value in values:
        # Only NaN differs from itself.
        numbers.append(float(f"{value:.6g}") if value == value else None)
    return numbers
