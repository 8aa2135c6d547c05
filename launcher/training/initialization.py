"""The weights that a stage's model starts from, where they are not drawn anew: a model that was trained before, or a
teacher."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from data.errors import DataError
from launcher.errors import CheckpointError, ConfigError
from launcher.export.model_files import load_tokenizer
from launcher.inference.finished_model import read_features
from launcher.recipe import DistillStage, PretrainStage
from launcher.stages.context import StageContext
from launcher.training.distillation.terms import TeacherTerms
from launcher.training.teachers.load import recognizer_of
from model.encoder import Encoder
from model.export import holds_encoder_alone, load_encoder, load_model
from model.recognizer import Recognizer
from model.upcycle import HEADS, StartedOutputs, initialize_encoder, initialize_from_teacher, initialize_outputs


@dataclass(frozen=True)
class Start:
    """What a stage's model was started from, which parts were copied, and which drawn anew, each with the reason."""

    model: str
    copied: tuple[str, ...]
    drawn: dict[str, str]

    def describe(self) -> str:
        """One paragraph for the log."""
        text = f"started from {self.model}: {', '.join(self.copied)} copied"
        for name, reason in self.drawn.items():
            text += f"; {name} drawn anew, because {reason}"
        return text


def initialize_from_model(recognizer: Recognizer, context: StageContext[PretrainStage], pieces: list[str]) -> Start:
    """Copy the encoder of a finished model and, of a recogniser, what is over it; `pieces` are those of the tokenizer.

    ConfigError where the encoder is of another shape or was trained on other features, CheckpointError where the model
    cannot be read.
    """
    stage = context.stage
    model = stage.initialize_from
    assert model is not None
    folder = context.run.model_folder(model)
    # The encoder's weights were learnt on these mel bins: other ones it would read as noise.
    features = read_features(folder)
    expected_features = context.recipe.features
    if features != expected_features:
        differing = [key for key, value in features if value != getattr(expected_features, key)]
        raise ConfigError(
            f"Stage {stage.name} cannot start from {model}: its features.{differing[0]} was "
            f"{getattr(features, differing[0])} and is {getattr(expected_features, differing[0])} in this recipe. Make "
            "the features equal."
        )
    try:
        encoder, source, source_pieces = _read_source(folder)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, DataError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"Stage {stage.name} cannot start from {model}, which cannot be read: {reason}. Copy the folder again from "
            "where it was trained."
        ) from None
    try:
        initialize_encoder(recognizer.encoder, encoder, stage.initialize_layers)
    except ValueError as error:
        raise ConfigError(f"Stage {stage.name} cannot start from {model}: {error}.") from None

    copied = "encoder"
    if stage.initialize_layers is not None:
        copied = f"front-end and lowest {stage.initialize_layers} layers of the encoder"
    reason = ""
    if source is None:
        reason = "the model is an encoder alone"
    elif stage.initialize_layers is not None:
        reason = "layers of the encoder are (initialize_layers)"
    elif not stage.initialize_outputs:
        reason = "initialize_outputs is false"
    outputs = StartedOutputs((), {})
    if source is not None and not reason:
        outputs = initialize_outputs(recognizer, source, same_tokens=source_pieces == pieces)
    elif reason:
        heads = [name for name in HEADS if getattr(recognizer, name) is not None]
        outputs = StartedOutputs((), dict.fromkeys(heads, reason))
    return Start(model, (copied, *outputs.copied), outputs.drawn)


def _read_source(folder: Path) -> tuple[Encoder, Recognizer | None, list[str]]:
    """The encoder of a finished model, and of a recogniser the whole of it and the pieces of its tokenizer."""
    if holds_encoder_alone(folder):
        return load_encoder(folder), None, []
    source = load_model(folder)
    return source.encoder, source, load_tokenizer(folder).pieces


def initialize_from_first_teacher(recognizer: Recognizer, stage: DistillStage, teacher_terms: TeacherTerms) -> None:
    """Copy the weights of the first teacher; ConfigError where it is not of the same shape."""
    # Where its outputs come from a cache it was never loaded: it is read now.
    teacher = recognizer_of(teacher_terms.teacher)
    model = stage.named_teachers[0].model
    if teacher is None:
        raise ConfigError(
            f"Stage {stage.name} cannot start from teacher {model}, which is not a model of Chorus. Put one that is "
            "first among its teachers, or set initialize_from_teacher to false."
        )
    # The output layers have a row for each token.
    if teacher.vocabulary_size != recognizer.vocabulary_size:
        raise ConfigError(
            f"Stage {stage.name} cannot start from teacher {model}: it knows {teacher.vocabulary_size} tokens and this "
            f"run's tokenizer {recognizer.vocabulary_size}. Train both with one tokenizer, or set "
            "initialize_from_teacher to false."
        )
    if not teacher_terms.teacher.same_tokens:
        raise ConfigError(
            f"Stage {stage.name} cannot start from teacher {model}: it has as many tokens as this run's tokenizer, and "
            "they are others, so its output layers would write other texts. Train both with one tokenizer "
            "(tokenizer.model names one), or set initialize_from_teacher to false."
        )
    try:
        initialize_from_teacher(recognizer, teacher)
    except ValueError as error:
        raise ConfigError(f"Stage {stage.name} cannot start from teacher {model}: {error}.") from None
