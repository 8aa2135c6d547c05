"""TensorBoard: event files in the stage's folder `tensorboard`, written by `torch.utils.tensorboard`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from launcher.tracking.backend import Alert, Artifact, Sound, Table
from launcher.tracking.flatten import flatten_numbers


class TensorboardBackend:
    """Writes the curves of one stage; a resumed stage hides the points after `resume_step`."""

    name = "tensorboard"

    def __init__(self, folder: Path, resume_step: int) -> None:
        self._folder = folder
        self._resume_step = resume_step
        self._writer: Any = None
        self._step = resume_step

    def open(self, claim_exit: Callable[[], None]) -> str:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard hides points from this step on that were written before.
        self._writer = SummaryWriter(self._folder, purge_step=self._resume_step + 1)
        return f"writes to {self._folder}"

    def log(self, row: dict[str, Any]) -> None:
        self._step = row["step"]
        for name, value in flatten_numbers(row).items():
            # These are the axes of every curve.
            if name not in ("step", "time"):
                self._writer.add_scalar(name, value, self._step, row.get("time"))

    def summarize(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, self._step)

    def images(self, step: int, images: dict[str, np.ndarray]) -> None:
        for name, image in images.items():
            self._writer.add_image(name, image, step, dataformats="HWC")

    def alert(self, alert: Alert) -> None:
        self._writer.add_text("alerts", f"**{alert.level}: {alert.title}** {alert.text}", self._step)

    def table(self, table: Table) -> None:
        """Without its sounds: the page of TensorBoard has no place for them in a table."""
        rule = ["---"] * len(table.columns)
        lines = []
        for row in [table.columns, rule, *table.rows]:
            cells = []
            for cell in row:
                if isinstance(cell, Sound):
                    cell = ""
                # A bar would end the cell.
                cells.append(str(cell).replace("|", "\\|"))
            lines.append(f"| {' | '.join(cells)} |")
        self._writer.add_text(table.name, "\n".join(lines), self._step)

    def artifact(self, artifact: Artifact, used: bool) -> None:
        relation = "made"
        if used:
            relation = "used"
        text = f"{relation}: {artifact.kind}, SHA-256 {artifact.fingerprint}"
        self._writer.add_text(f"lineage/{artifact.name}", text, self._step)

    def close(self) -> None:
        self._writer.flush()

    def release(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def abandon(self, deadline_s: float) -> None:
        """There is nothing but threads, which end with the process."""

    def advice(self) -> str:
        return ""
