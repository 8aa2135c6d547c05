"""The choice of a checkpoint, on which all processes must act alike: the first one judges, the others take its word."""

import torch.distributed as dist

from launcher.run_folder import StageFolder
from launcher.training.checkpoint.reading import Checkpoint, newest_intact


def agreed_checkpoint(stage: StageFolder, up_to: int | None = None) -> Checkpoint | None:
    """The newest intact checkpoint (of steps `up_to` one) as the first process finds it; None if none. Collective."""
    first = dist.get_rank() == 0
    newest = newest_intact(stage, up_to) if first else None
    choice = [newest.step if newest else None]
    dist.broadcast_object_list(choice, 0)
    if choice[0] is None:
        return None
    return newest or Checkpoint(stage.checkpoint(choice[0]), verify=False)
