"""The one object the training loop of rank 0 reports to."""

import os
from pathlib import Path

from launcher.run_folder import StageFolder
from launcher.tracking.config import TrackingConfig
from launcher.tracking.metrics_log import MetricsLog
from launcher.tracking.mirror import WandbMirror, choose_mode


class Tracker:
    """Writes every row to `metrics.jsonl` and offers it to the Weights & Biases mirror.

    `log` neither waits nor raises: a mirror that is slow, broken or absent costs rows of the mirror only.
    With `resume_step`, rows of later steps (written by an attempt that was lost) are cut off first; a new
    stage passes 0. Raises OSError from the constructor when `metrics.jsonl` cannot be opened.
    """

    def __init__(
        self,
        stage_folder: Path,
        config: TrackingConfig,
        *,
        run_name: str,
        stage_name: str,
        recipe: dict,
        resume_step: int,
    ) -> None:
        self._metrics = MetricsLog(StageFolder(stage_folder).metrics_file, resume_step)
        mode, reason = choose_mode(config.wandb.mode, os.environ)
        self._mirror: WandbMirror | None = None
        if mode != "disabled":
            self._mirror = WandbMirror(stage_folder, config.wandb, mode, reason, run_name, stage_name, recipe)

    def log(self, row: dict) -> None:
        """Records one row: `step` and metrics (numbers, or lists of numbers such as the load per expert)."""
        self._metrics.append(row)
        if self._mirror is not None:
            self._mirror.offer(row)

    @property
    def lost_rows(self) -> int:
        """Rows that `metrics.jsonl` could not take, for instance because the disk was full."""
        return self._metrics.lost_rows

    @property
    def unmirrored_rows(self) -> int:
        """Rows that were written but never reached the mirror."""
        return 0 if self._mirror is None else self._mirror.dropped_rows

    def close(self, timeout_s: float) -> None:
        """Ends the mirror, its helper processes included, within `timeout_s`; a second call does nothing."""
        self._metrics.close()
        if self._mirror is not None:
            self._mirror.close(timeout_s)
