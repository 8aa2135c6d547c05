"""The tokenizer and the statistics of the features that a stage works with: the run's, or of an adaptation those of the
model that it adapts, which knows no others."""

from pathlib import Path
from typing import Any

from data.errors import DataError
from data.text.tokenizer import Tokenizer
from launcher.export.model_files import features_file, load_tokenizer
from launcher.recipe import AdaptStage, AnyTrainingStage
from launcher.recipe.bases import unreadable_base
from launcher.run_files import read_statistics
from launcher.stages.context import StageContext


def base_folder(context: StageContext[AdaptStage]) -> Path:
    """The folder of the model that a stage adapts."""
    return context.run.model_folder(context.stage.base)


def read_tokenizer(context: StageContext[AnyTrainingStage]) -> Tokenizer:
    """The tokenizer of a stage's outputs. DataError or CheckpointError when it cannot be read."""
    stage = context.stage
    if not isinstance(stage, AdaptStage):
        return Tokenizer.load(context.run.tokenizer)
    folder = context.run.model_folder(stage.base)
    try:
        return load_tokenizer(folder)
    except DataError as error:
        raise unreadable_base(stage, folder, str(error)) from None


def read_feature_statistics(context: StageContext[AnyTrainingStage]) -> dict[str, Any]:
    """`mean` and `std` of the features that a stage's model reads. DataError or CheckpointError as above."""
    stage = context.stage
    if not isinstance(stage, AdaptStage):
        return read_statistics(context.run.features_file)
    folder = context.run.model_folder(stage.base)
    try:
        return read_statistics(features_file(folder))
    except (OSError, DataError) as error:
        raise unreadable_base(stage, folder, str(error)) from None


def token_counts_file(context: StageContext[AnyTrainingStage], split: str, label: str = "") -> Path:
    """Where the tokens of a split's transcripts are counted: beside the tokenizer, or where there is none in the
    stage's folder."""
    if not isinstance(context.stage, AdaptStage):
        return context.run.token_counts_file(split, label)
    # A split of the former domain may be a folder elsewhere.
    name = Path(split).name
    if label:
        name = f"{name}-{label}"
    return context.folder.path / "tokens" / f"counts-{name}.npz"
