"""The choice of a checkpoint, on which all processes must act alike: the first one judges, the others take its word."""

from collections.abc import Callable

import torch.distributed as dist

from launcher.run_folder import StageFolder
from launcher.training.checkpoint.reading import Checkpoint, newest_intact
from launcher.training.collectives import broadcast_json


def agreed_checkpoint(
    stage: StageFolder, up_to: int | None = None, on_progress: Callable[[], None] = lambda: None
) -> Checkpoint | None:
    """The newest intact checkpoint (of steps `up_to` one) as the first process finds it; None if none. Collective.

    `on_progress` is called in the first process, before each file that it compares.
    """
    checkpoint = None
    step: int | None = None
    if dist.get_rank() == 0:
        checkpoint = newest_intact(stage, up_to, on_progress)
        if checkpoint is not None:
            step = checkpoint.step
    step = broadcast_json(step)
    if step is None or checkpoint is not None:
        return checkpoint
    # The first process has compared every file with its SHA-256; once is enough.
    return Checkpoint(stage.checkpoint(step), verify=False)
