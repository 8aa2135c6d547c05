"""What a stage of kind adapt does in another way than a training from the start: its model begins as the base with
adapters that change nothing, its tokenizer and features are the base's, a second split says what must not be lost, and
beside the finished model it leaves what it changed as an adapter of its own.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

from safetensors import SafetensorError

from data.files import remove_path
from launcher.errors import CheckpointError, ConfigError
from launcher.inference.finished_model import write_finished_model
from launcher.recipe import AdaptStage
from launcher.recipe.bases import check_trained_share, unreadable_base
from launcher.stages.context import StageContext
from launcher.training.checkpoint import averaged_weights, best_checkpoint
from launcher.training.front_end import base_folder
from launcher.training.inputs import Inputs
from model.adapter_files import adapter_of, write_adapter
from model.export import load_model
from model.recognizer import Recognizer

logger = logging.getLogger(__name__)


def load_base(context: StageContext[AdaptStage]) -> Recognizer:
    """The model that a stage adapts; CheckpointError when it cannot be read."""
    folder = base_folder(context)
    try:
        return load_model(folder)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise unreadable_base(context.stage, folder, " ".join(str(error).split())) from None


def build_adapted(context: StageContext[AdaptStage]) -> Recognizer:
    """The base with adapters that change nothing yet; ConfigError where it is not what the recipe was checked with."""
    stage = context.stage
    base = load_base(context)
    encoder = base.config.encoder.model_copy(update={"adapters": stage.adapt.adapters})
    if base.config.model_copy(update={"encoder": encoder}) != stage.model:
        raise ConfigError(
            f"Stage {stage.name} adapts {stage.base}, which has another shape than when the run was started. Put the "
            "former model back, or start a new run."
        )
    recognizer = Recognizer(stage.model, base.mel_bins, base.vocabulary_size)
    state = recognizer.state_dict()
    state |= base.state_dict()
    recognizer.load_state_dict(state)
    # Again, by the number of tokens that the base has.
    check_trained_share(stage, recognizer)
    return recognizer


@dataclass
class KeepCheck:
    """The former domain: how many errors the base makes there, and whether the model still recognises it.

    `base_cer` is measured before the first step and goes with every checkpoint.
    """

    split: str
    inputs: Inputs
    max_degradation: float
    base_cer: float | None = None

    def allows(self, cer: float) -> bool:
        """Whether the error rate is within what may be lost."""
        assert self.base_cer is not None, "measured before the first step"
        return cer <= self.base_cer + self.max_degradation

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"base_cer": self.base_cer}


def write_adapted_model(context: StageContext[AdaptStage]) -> None:
    """Write the finished model of a stage, and beside it the adapter.

    Made of the best checkpoint that keeps what is to be kept, or of an average; CheckpointError where none keeps it.
    """
    stage = context.stage
    folder = context.folder
    if stage.average is not None or not context.has_split("dev"):
        weights, steps = averaged_weights(folder, stage.average)
    else:
        checkpoint = best_checkpoint(folder)
        if checkpoint is None:
            raise CheckpointError(_nothing_kept(context))
        weights, steps = checkpoint.weights(), [checkpoint.step]
    logger.info("the model is of steps %s", steps)

    base = load_base(context)
    adapter = adapter_of(base, weights, stage.adapt.adapters)
    trained = sum(value.numel() for value in adapter.state.values())
    own = sum(value.numel() for value in base.parameters())
    facts = {
        "stage": stage.name,
        "base": stage.base,
        "method": stage.adapt.method,
        "steps": steps,
        "values": trained,
        "share": trained / own,
    }
    # Before the model, with which the stage is done.
    temporary = folder.path / ".adapter.tmp"
    remove_path(temporary)
    try:
        temporary.mkdir(parents=True)
        write_adapter(temporary, replace(adapter, facts=facts))
        remove_path(folder.adapter)
        temporary.rename(folder.adapter)
    except (OSError, SafetensorError) as error:
        remove_path(temporary)
        raise ConfigError(
            f"The adapter could not be written to {folder.adapter}: {error}. Make room there, and give the same "
            "command again."
        ) from None
    write_finished_model(folder.model, base_folder(context), stage.model, context.recipe.features, weights)


def _nothing_kept(context: StageContext[AdaptStage]) -> str:
    adapt = context.stage.adapt
    return (
        f"Stage {context.name} has no checkpoint that keeps what the model could do: on {adapt.keep_split} the "
        f"character error rate of every one that was validated lies more than {adapt.max_degradation:g} above that of "
        f"{context.stage.base} (validation/keep_cer in metrics.jsonl). Lower its optimizer.peak_learning_rate, let "
        "validate_every and checkpoint.every_steps be smaller, train less of the model, or raise "
        "adapt.max_degradation."
    )
