"""The one object the training loop of rank 0, and an evaluation, report to."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.redaction import redact, redact_values
from launcher.run_folder import StageFolder
from launcher.tracking.alerts import Event, make_alert, unreported_restarts
from launcher.tracking.backend import Alert, Artifact, Backend, Table
from launcher.tracking.background_writer import BackgroundWriter, Record
from launcher.tracking.config import TrackingConfig
from launcher.tracking.login import choose_mode
from launcher.tracking.metrics_log import MetricsLog, read_metrics
from launcher.tracking.router_maps import COLUMNS
from launcher.tracking.tensorboard_backend import TensorboardBackend
from launcher.tracking.wandb_backend import WandbBackend


class Tracker:
    """Writes every row to `metrics.jsonl`, and offers it and everything else to the backends.

    No method but `close` waits, and none raises: a backend that is slow, broken or absent costs only what it would have
    shown. With `resume_step`, rows of later steps (written by an attempt that was lost) are cut off first; a new stage
    passes 0, one that has no steps and no metrics passes None. Raises OSError from the constructor when
    `metrics.jsonl` cannot be opened.
    """

    def __init__(
        self,
        stage_folder: Path,
        config: TrackingConfig,
        *,
        run_name: str,
        recipe: dict[str, Any],
        resume_step: int | None,
    ) -> None:
        stage = StageFolder(stage_folder)
        self._metrics = None
        if resume_step is not None:
            self._metrics = MetricsLog(stage.metrics_file, resume_step)

        backends: list[Backend] = []
        if config.tensorboard:
            backends.append(TensorboardBackend(stage.tensorboard, resume_step or 0))
        mode, reason = choose_mode(config.wandb.mode, os.environ)
        if mode != "disabled":
            backends.append(WandbBackend(stage_folder, config.wandb, mode, reason, run_name, redact_values(recipe)))

        def read_past_rows() -> Iterator[dict[str, Any]]:
            # This attempt may have written rows of its own before the thread gets here.
            for row in read_metrics(stage.metrics_file, thin_to=COLUMNS):
                if row["step"] <= (resume_step or 0):
                    yield row

        self._writers = [BackgroundWriter(backend, stage.logs, read_past_rows) for backend in backends]

    def log(self, row: dict[str, Any]) -> None:
        """Records one row: `step` and metrics (numbers, or lists of numbers such as the load per expert)."""
        if self._metrics is not None:
            self._metrics.append(row)
        for writer in self._writers:
            writer.offer(row)

    def summarize(self, values: dict[str, float]) -> None:
        """Passes on numbers that hold for the stage as a whole."""
        self._offer(lambda backend: backend.summarize(values))

    def event(self, event: Event) -> None:
        """Raises an alert about an event of the run if it is worth one."""
        alert = make_alert(event)
        if alert is not None:
            # Reasons repeat what libraries say of URLs.
            shown = Alert(redact(alert.title), redact(alert.text), alert.level)
            self._offer(lambda backend: backend.alert(shown))

    def alert_restarts(self, events: Iterable[Event], stage: str) -> None:
        """Raises the alerts about restarts of a stage since it last trained."""
        for event in unreported_restarts(events, stage):
            self.event(event)

    def table(self, build: Callable[[], Table]) -> None:
        """Shows a table; it is built in each backend's thread."""
        self._offer(lambda backend: backend.table(build()))

    def artifacts(self, build: Callable[[], Iterable[Artifact]], used: bool) -> None:
        """Declares what the stage used, or made; built in each backend's thread."""

        def declare(backend: Backend) -> None:
            for artifact in build():
                shown = replace(artifact, content=redact_values(artifact.content), note=redact_values(artifact.note))
                backend.artifact(shown, used)

        self._offer(declare)

    def _offer(self, record: Record) -> None:
        for writer in self._writers:
            writer.offer(record)

    @property
    def lost_rows(self) -> int:
        """Rows that `metrics.jsonl` could not take, for instance because the disk was full."""
        if self._metrics is None:
            return 0
        return self._metrics.lost_rows

    @property
    def num_dropped(self) -> int:
        """Rows and other records that never reached a backend; a record counts once for each."""
        return sum(writer.dropped for writer in self._writers)

    def close(self, timeout_s: float) -> None:
        """Ends the backends, helper processes included, within `timeout_s` altogether; a second call does nothing."""
        if self._metrics is not None:
            self._metrics.close()
        deadline_s = time.monotonic() + timeout_s
        num_open = len(self._writers)
        for writer in self._writers:
            # What one backend does not need is left to the others.
            remaining_s = max(0.0, deadline_s - time.monotonic())
            writer.close(remaining_s / num_open)
            num_open -= 1
