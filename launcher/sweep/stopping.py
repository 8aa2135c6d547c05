"""Which runs of a sweep are hopeless: the median stopping rule (Golovin et al. 2017, "Google Vizier", section 3.2).

From a share of a stage's steps on, a run is stopped whose best validation so far is worse than the median of what the
other runs had reached by the same step. The measure is the error rate per character, else the loss of the validation.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.monitoring.line_tail import LineTail
from launcher.run_files import parse_metrics_row
from launcher.run_folder import is_number

MEASURES = ("validation/cer", "validation/loss")
# Others that must have come as far; the median of fewer says little.
MIN_OTHERS = 3


class ValidationCurve:
    """The validations of a stage as its metrics grow: steps, and the lowest value up to each."""

    def __init__(self, metrics_file: Path, run_folder: Path) -> None:
        self._tail = LineTail(metrics_file, run_folder)
        self.steps: list[int] = []
        self.best: list[float] = []

    def refresh(self) -> None:
        while True:
            new = self._tail.read()
            if new.is_anew:
                self.steps.clear()
                self.best.clear()
            for line in new.lines:
                self._add(line)
            if not new.has_more:
                return

    def _add(self, line: bytes) -> None:
        # Most lines are none of a validation, and are not parsed.
        if b'"validation/' not in line:
            return
        row = parse_metrics_row(line) or {}
        for measure in MEASURES:
            if is_number(row.get(measure)):
                self.steps.append(row["step"])
                self.best.append(min([row[measure], *self.best[-1:]]))
                return

    def best_until(self, step: int) -> float | None:
        """The lowest value up to a step; None where the stage has not come so far."""
        if not self.steps or self.steps[-1] < step:
            return None
        lowest = None
        for reached, value in zip(self.steps, self.best, strict=True):
            if reached <= step:
                lowest = value
        return lowest


@dataclass(frozen=True)
class Verdict:
    """Why a run is stopped: its best value at a step, and the median of the others'."""

    stage: str
    step: int
    value: float
    median: float

    def describe(self) -> str:
        return (
            f"{self.stage} had {self.value:.4g} at step {self.step}, worse than the others' median of {self.median:.4g}"
        )


def judge(
    trial: str, stage: str, steps: int, curves: Mapping[str, ValidationCurve], from_share: float
) -> Verdict | None:
    """Return why a run is to be stopped, None where it may go on; `curves` are those of one stage in all runs."""
    own = curves.get(trial)
    if own is None or not own.steps or own.steps[-1] < from_share * steps:
        return None
    step = own.steps[-1]
    others = _values_at([curve for name, curve in curves.items() if name != trial], step)
    if len(others) < MIN_OTHERS:
        return None
    median = statistics.median(others)
    value = own.best[-1]
    if value <= median:
        return None
    return Verdict(stage, step, value, median)


def _values_at(curves: Sequence[ValidationCurve], step: int) -> list[float]:
    values = []
    for curve in curves:
        value = curve.best_until(step)
        if value is not None:
            values.append(value)
    return values
