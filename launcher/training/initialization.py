"""The weights that a stage's model starts from, where they are not drawn anew: an encoder that was trained before, or
a teacher."""

from launcher.errors import ConfigError
from launcher.inference.finished_model import read_features
from launcher.recipe import DistillStage, PretrainStage
from launcher.stages.context import StageContext
from launcher.training.distillation.terms import TeacherTerms
from launcher.training.teachers.load import recognizer_of
from model.export import load_encoder
from model.recognizer import Recognizer
from model.upcycle import initialize_encoder, initialize_from_teacher


def initialize_from_encoder(recognizer: Recognizer, context: StageContext[PretrainStage]) -> None:
    """Copy the encoder of a finished model; ConfigError where it is of another shape or was trained on other
    features."""
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
        initialize_encoder(recognizer.encoder, load_encoder(folder), stage.initialize_layers)
    except ValueError as error:
        raise ConfigError(f"Stage {stage.name} cannot start from {model}: {error}.") from None


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
