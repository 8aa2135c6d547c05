"""The rows and events of a training stage: metrics.jsonl through the tracker, events.jsonl, and warnings in the log.

Every process builds a `TrainingLog` and calls it alike. Only the first process has a tracker and writes.
"""

import logging
import time
from typing import Any

import torch.distributed as dist

from launcher.monitoring.goodput import stage_goodput
from launcher.recipe import AnyTrainingStage
from launcher.stages.context import StageContext
from launcher.tracking import Tracker, read_last_rows
from launcher.training.health.loss_spikes import SpikeDetector
from launcher.training.health.routing_collapse import CollapseDetector

logger = logging.getLogger(__name__)

# More than both detectors look back.
EARLIER_ROWS = 100


class TrainingLog:
    """What a stage says about itself while it trains."""

    def __init__(self, context: StageContext[AnyTrainingStage], tracker: Tracker | None = None):
        """`tracker` is that of the first process; the others have none."""
        self.context = context
        self.tracker = tracker
        # What the loss and the routing usually are, as far as an earlier start of the stage has measured them. The last
        # rows serve: all of a long stage would take minutes to read, while the other processes wait.
        earlier_rows = []
        if tracker:
            earlier_rows = read_last_rows(context.folder.metrics_file, EARLIER_ROWS)
        losses = []
        for row in earlier_rows:
            # A loss that was not finite is null in metrics.jsonl.
            if row["loss"] is not None:
                losses.append(row["loss"])
        self._spikes = SpikeDetector(losses)
        self._collapses = CollapseDetector(earlier_rows, context.stage.model.encoder.expert_users)

    def row(self, step: int, **values: Any) -> None:
        """Write one row of metrics."""
        if self.tracker:
            self.tracker.log({"step": step, **values, "time": time.time()})

    def training_row(self, step: int, **values: Any) -> None:
        """Write the row of one or more training steps, and say so when its loss or its routing is unusual."""
        if self.tracker is None:
            return
        row = {"step": step, **values}
        self.tracker.log(row)
        usual_loss = self._spikes.check(row["loss"])
        if usual_loss is not None:
            logger.warning("step %d: the loss jumped to %.3g, usual was %.3g", step, row["loss"], usual_loss)
            self.event("loss_spike", step, loss=row["loss"], usual=usual_loss)
        for change in self._collapses.check(row):
            logger.warning("step %d: %s", step, change)
            self.event(change.pop("event"), step, **change)

    def event(self, name: str, step: int, **details: Any) -> None:
        """Leave a record among the run's events, once for all processes."""
        if dist.get_rank() != 0:
            return
        event = {"event": name, "stage": self.context.name, "step": step, **details}
        self.context.run.append_event(**event)
        if self.tracker:
            self.tracker.event(event)

    def goodput(self, step: int) -> None:
        """Write what the stage's wall time went to until now, as fractions of it."""
        if self.tracker is None:
            return
        run = self.context.run
        goodput = stage_goodput(run, self.context.name, run.events())
        if goodput is None:
            return
        values = {}
        for name, share in goodput.shares().items():
            values[f"goodput/{name}"] = share
        values["goodput/wall_s"] = goodput.wall_s
        self.row(step, **values)
        self.tracker.summarize(values)

    def close(self, timeout_s: float) -> None:
        if self.tracker:
            self.tracker.close(timeout_s)
