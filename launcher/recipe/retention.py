"""Which checkpoints of a stage stay, on a disk or in an object store."""

from collections.abc import Mapping

from launcher.recipe.stages import CheckpointConfig


def retained(validation_cer: Mapping[int, float | None], newest: int, config: CheckpointConfig) -> set[int]:
    """The steps of the checkpoints that stay, of those given with their character error rates (None: not validated).

    Always among them: `newest`, which has just been written, and of equally good ones the later. Checkpoints of later
    steps than `newest` were found damaged on resuming; they stay until their step is written again, and do not count.
    """
    steps = []
    later = []
    validated = []
    for step, cer in sorted(validation_cer.items()):
        if step > newest:
            later.append(step)
            continue
        steps.append(step)
        if cer is not None:
            validated.append((cer, -step))

    keep = {newest, *later, *steps[-config.keep_last :]}
    for _, negated_step in sorted(validated)[: config.keep_best]:
        keep.add(-negated_step)
    if config.keep_every is not None:
        for step in steps:
            if step % config.keep_every == 0:
                keep.add(step)
    return keep
