"""Which checkpoints stay on the disk, and whether there is room for one more."""

import logging
import shutil
from contextlib import suppress
from pathlib import Path

from data.files import remove_path
from launcher.errors import CheckpointError
from launcher.recipe import CheckpointConfig
from launcher.recipe.retention import retained
from launcher.run_folder import StageFolder
from launcher.training.checkpoint.reading import read_manifest

# Room for the manifest, for headers, and for what else is written to the same disk meanwhile.
SPACE_MARGIN = 1.05
SPACE_MARGIN_BYTES = 1 << 20

logger = logging.getLogger(__name__)


def retire(stage: StageFolder, newest: int, config: CheckpointConfig) -> None:
    """Remove the checkpoints that the settings no longer keep."""
    validation_cer: dict[int, float | None] = {}
    for step in stage.checkpoint_steps():
        validation_cer[step] = None
        # One that cannot be read counts as one without validation.
        with suppress(CheckpointError):
            # Checkpoints of before there was this field have not got it.
            validation_cer[step] = read_manifest(stage.checkpoint(step)).get("validation_cer")
    for step in sorted(validation_cer.keys() - retained(validation_cer, newest, config)):
        remove(stage.checkpoint(step))


def remove(folder: Path) -> None:
    """Delete a checkpoint so that a kill halfway leaves nothing that looks like one."""
    # Renamed first: what a kill leaves then has a hidden name, which no reader takes for a checkpoint and the next save
    # clears away.
    hidden = folder.with_name(f".{folder.name}.tmp")
    remove_path(hidden)
    folder.rename(hidden)
    remove_path(hidden)


def has_room(folder: Path, state_bytes: int, step: int) -> bool:
    """Whether a state of that size can be written; when not, say in the log what there is and what it takes."""
    needed = int(state_bytes * SPACE_MARGIN) + SPACE_MARGIN_BYTES
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return True
    logger.warning(
        "The checkpoint of step %d is not written: %s are free in %s and it needs %s. Training goes on and the "
        "previous checkpoint stays; make room there, or keep fewer (checkpoint.keep_last, keep_best, keep_every).",
        step,
        _size(free),
        folder,
        _size(needed),
    )
    return False


def _size(num_bytes: int) -> str:
    if num_bytes >= 1e8:
        return f"{num_bytes / 1e9:.2f} GB"
    return f"{num_bytes / 1e6:.2f} MB"
