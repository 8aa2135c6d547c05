"""Checkpoints that are whole or absent, and that do not know the topology that wrote them.

`layout` is the format on the disk, `reading` opens a checkpoint without any process group, `agreement` has all
processes open the same one, `averaging` makes one model of several, `saving` writes one while training goes on,
`retention` says which ones stay.
`docs/checkpoints.md` has the format field by field.
"""

from launcher.training.checkpoint.agreement import agreed_checkpoint
from launcher.training.checkpoint.averaging import averaged_weights, best_checkpoint
from launcher.training.checkpoint.layout import AVERAGE, BUFFER
from launcher.training.checkpoint.reading import Checkpoint, newest_intact, open_checkpoint
from launcher.training.checkpoint.saving import Saver, State

__all__ = [
    "AVERAGE",
    "BUFFER",
    "Checkpoint",
    "Saver",
    "State",
    "agreed_checkpoint",
    "averaged_weights",
    "best_checkpoint",
    "newest_intact",
    "open_checkpoint",
]
