"""Averages of weights, from checkpoints: of several of them, or the running average that one holds.

Needs no process group and no DeepSpeed. Sums are formed in fp64, value by value.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from launcher.errors import CheckpointError
from launcher.recipe import AverageConfig
from launcher.run_folder import StageFolder
from launcher.training.checkpoint.layout import AVERAGE
from launcher.training.checkpoint.reading import Checkpoint, open_checkpoint, read_manifest

logger = logging.getLogger(__name__)


def averaged_weights(
    stage: StageFolder, average: AverageConfig | None, last_step: int | None = None
) -> tuple[dict[str, Tensor], list[int]]:
    """The weights that a stage ends with, or would at `last_step`, in fp32 by their names in an unspread model, and
    the steps they are of.

    Without an average those of the newest intact checkpoint. Damaged checkpoints are logged and passed over, and where
    there are fewer than are asked for, all of them count. CheckpointError when there is none that can.
    """
    if average is None:
        newest = open_checkpoint(stage, last_step)
        return newest.weights(), [newest.step]
    if average.kind == "running":
        newest = open_checkpoint(stage, last_step)
        return running_average(newest), [newest.step]
    checkpoints = choose_checkpoints(stage, average, last_step)
    steps = [checkpoint.step for checkpoint in checkpoints]
    if len(steps) < average.checkpoints:
        logger.warning(
            "Stage %s: %d checkpoints were to be averaged, and there are %d: of steps %s.",
            stage.name,
            average.checkpoints,
            len(steps),
            ", ".join(map(str, steps)),
        )
    return mean_weights(checkpoints), steps


def choose_checkpoints(stage: StageFolder, average: AverageConfig, last_step: int | None = None) -> list[Checkpoint]:
    """The intact checkpoints that are averaged, by their steps: the newest, or those with the lowest error rates (of
    equally good ones the later); with `last_step`, of those up to it."""
    candidates = stage.checkpoint_steps()[::-1]
    if average.kind == "best":
        candidates = _best_first(stage)
    chosen = []
    for step in candidates:
        if len(chosen) == average.checkpoints:
            break
        if last_step is not None and step > last_step:
            continue
        try:
            chosen.append(Checkpoint(stage.checkpoint(step)))
        except CheckpointError as error:
            logger.warning("%s It is no part of the average.", error)
    if not chosen:
        reason = "none of its checkpoints is intact"
        if average.kind == "best":
            reason = "none of its checkpoints is intact and has an error rate on the validation split"
        if last_step is not None:
            reason += f", up to step {last_step}"
        raise CheckpointError(
            f"Stage {stage.name} has nothing to average in {stage.checkpoints}: {reason}. Average the last ones, or "
            "let validate_every divide checkpoint.every_steps, and give the corpus a split dev."
        )
    return sorted(chosen, key=lambda checkpoint: checkpoint.step)


def best_checkpoint(stage: StageFolder) -> Checkpoint | None:
    """The intact checkpoint with the lowest error rate, of equally good ones the later; None where none has one."""
    for step in _best_first(stage):
        try:
            return Checkpoint(stage.checkpoint(step))
        except CheckpointError as error:
            logger.warning("%s It is passed over.", error)
    return None


def _best_first(stage: StageFolder) -> list[int]:
    """The steps of the checkpoints that have an error rate, the lowest first, of equal ones the later."""
    rates = []
    for step in stage.checkpoint_steps():
        try:
            cer = read_manifest(stage.checkpoint(step)).get("validation_cer")
        except CheckpointError as error:
            logger.warning("%s It is passed over.", error)
            continue
        if cer is not None:
            rates.append((cer, -step))
    return [-negated_step for _, negated_step in sorted(rates)]


def mean_weights(checkpoints: Sequence[Checkpoint]) -> dict[str, Tensor]:
    """The mean of every parameter and buffer. CheckpointError when the checkpoints are not of one model."""
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if other.shapes != first.shapes:
            raise CheckpointError(
                f"The checkpoints {first.folder} and {other.folder} are of two models and have no average."
            )
    weights = {}
    for name, shape in first.shapes.items():
        kind = first.kinds(name)[0]
        total = torch.zeros(shape, dtype=torch.float64)
        for checkpoint in checkpoints:
            total += checkpoint.whole(kind, name)
        weights[name] = (total / len(checkpoints)).float()
    return weights


def running_average(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The running average that a checkpoint holds; CheckpointError when it holds none."""
    weights = {}
    for name in checkpoint.shapes:
        if AVERAGE not in checkpoint.kinds(name):
            raise CheckpointError(
                f"The checkpoint {checkpoint.folder} holds no running average: its stage was trained without one. "
                "Average its last checkpoints."
            )
        weights[name] = checkpoint.whole(AVERAGE, name)
    return weights
