"""What a checkpoint holds of a training, taken from the engine and put back into it."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from data.text.tokenizer import Tokenizer
from launcher.errors import CheckpointError
from launcher.training import checkpoint
from launcher.training.fragments import full_shapes, owned_fragments, replica_fragments, set_optimizer_step
from launcher.training.health.nonfinite_steps import NonfiniteSteps
from launcher.training.metrics import MetricAccumulator
from launcher.training.parallel import Engine
from launcher.training.running_average import RunningAverage, state_buffers


def capture_state(
    engine: Engine,
    step: int,
    accumulator: MetricAccumulator,
    nonfinite: NonfiniteSteps,
    validation_cer: float | None,
    tokenizer: Tokenizer | None = None,
    average: RunningAverage | None = None,
    keep: dict[str, Any] | None = None,
) -> checkpoint.State:
    """This process's part of a checkpoint of `step`; `tokenizer` is what its output layers have tokens of, `keep` what
    is known of a domain that is not to be forgotten."""
    buffers = dict(state_buffers(engine.module))
    shapes = full_shapes(engine.module)
    for name, buffer in buffers.items():
        shapes[name] = list(buffer.shape)
    # The keys are those of checkpoints on the disk.
    trainer: dict[str, Any] = {"window": asdict(accumulator), "recovery": asdict(nonfinite)}
    if tokenizer is not None:
        trainer["tokenizer"] = tokenizer.sha256
    if keep is not None:
        trainer["keep"] = keep
    parts = owned_fragments(engine)
    buffer_averages = {}
    if average is not None:
        parts = average.fragments()
        buffer_averages = average.buffers
    return checkpoint.State(
        step=step,
        parts=parts,
        shapes=shapes,
        buffers=buffers,
        trainer=trainer,
        validation_cer=validation_cer,
        buffer_averages=buffer_averages,
    )


def check_tokenizer(saved: checkpoint.Checkpoint, tokenizer: Tokenizer | None) -> None:
    """Refuse (CheckpointError) a checkpoint whose output layers have the tokens of another tokenizer.

    Those of earlier versions do not say of which.
    """
    if tokenizer is None:
        return
    expected = saved.trainer.get("tokenizer", tokenizer.sha256)
    if tokenizer.sha256 != expected:
        raise CheckpointError(
            f"The checkpoint {saved.folder} was trained with another tokenizer than that in the folder of its run: "
            f"SHA-256 {expected[:12]}, now {tokenizer.sha256[:12]}. Its output layers would write other tokens. Put "
            "back the folder tokenizer that the run had, or begin the stage anew with --set-aside."
        )


def restore_state(
    engine: Engine,
    saved: checkpoint.Checkpoint,
    on_progress: Callable[[], None] = lambda: None,
    average: RunningAverage | None = None,
) -> tuple[MetricAccumulator, NonfiniteSteps]:
    """Copy weights, moments and buffers of a checkpoint into the engine, and the running average into `average`;
    returns what else it holds of the training.

    `on_progress` is called before each fragment that is read.
    """
    # Replicas are what the process computes with, fragments the fp32 weights and moments that it owns; under ZeRO 0
    # both are the same memory.
    for replica in replica_fragments(engine):
        on_progress()
        saved.fill(replica)
    fragments = owned_fragments(engine)
    if average is not None:
        fragments = average.fragments()
        for name, buffer_average in average.buffers.items():
            buffer_average.copy_(saved.whole(checkpoint.AVERAGE, name))
    for fragment in fragments:
        on_progress()
        saved.fill(fragment)
    for name, buffer in state_buffers(engine.module):
        buffer.copy_(saved.whole(checkpoint.BUFFER, name))

    accumulator = MetricAccumulator(**saved.trainer["window"])
    nonfinite = NonfiniteSteps(**saved.trainer.get("recovery", {}))
    # AdamW's bias correction counts the updates that are in the weights, not the steps.
    set_optimizer_step(engine, saved.step - nonfinite.skipped)
    return accumulator, nonfinite
