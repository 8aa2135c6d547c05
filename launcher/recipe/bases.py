"""The models that stages of kind adapt begin as: where they are, what shape they have, and what is wrong with them."""

from pathlib import Path

import torch
from pydantic import ValidationError

from data.shards.index import is_url, read_summary
from launcher.errors import CheckpointError, ConfigError
from launcher.recipe.adaptation import trained_share
from launcher.recipe.freezing import frozen_in_stage
from launcher.recipe.schema import Recipe
from launcher.recipe.stages import AdaptStage
from launcher.recipe.teachers import read_model_features, read_spec
from launcher.run_folder import is_folder
from model.export import WithoutValues, read_description
from model.recognizer import Recognizer, RecognizerConfig


def with_base_models(recipe: Recipe) -> Recipe:
    """The same recipe, each adapt stage with the model of its base and the adapters in it.

    A folder that is not there leaves the model as it was given: a recipe may be looked at elsewhere. ConfigError where
    a recipe gives another model than its base is.
    """
    stages = []
    models: dict[str, RecognizerConfig] = {}
    for stage in recipe.stages:
        if isinstance(stage, AdaptStage):
            stage = _with_base_model(stage, models)
        model = getattr(stage, "model", None)
        if isinstance(model, RecognizerConfig):
            models[stage.name] = model
        stages.append(stage)
    return recipe.model_copy(update={"stages": tuple(stages)})


def _with_base_model(stage: AdaptStage, models: dict[str, RecognizerConfig]) -> AdaptStage:
    base = models.get(stage.base)
    if is_folder(stage.base):
        try:
            base = read_description(Path(stage.base)).recognizer
        except (OSError, ValueError):
            base = None
    given = None
    if "model" in stage.model_fields_set:
        given = stage.model
    if base is None:
        base = stage.model
    elif given is not None and _without_adapters(given) != _without_adapters(base):
        raise ConfigError(
            f"stages.{stage.name}.model is given and is not the model of its base {stage.base}. An adaptation has the "
            "shape of what it adapts: leave model out."
        )
    # A base that has adapters of its own is refused later, by its name.
    encoder = base.encoder.model_copy(update={"adapters": stage.adapt.adapters})
    return stage.model_copy(update={"model": base.model_copy(update={"encoder": encoder})})


def _without_adapters(model: RecognizerConfig) -> RecognizerConfig:
    return model.model_copy(update={"encoder": model.encoder.model_copy(update={"adapters": None})})


def base_vocabulary_size(stage: AdaptStage) -> int | None:
    """The tokens of the folder that a stage adapts; None of an earlier stage, or where the folder cannot be read."""
    if not is_folder(stage.base):
        return None
    try:
        return read_description(Path(stage.base)).vocabulary_size
    except (OSError, ValueError):
        return None


def check_adaptation(recipe: Recipe, stage: AdaptStage) -> None:
    """Refuse a base that is adapted itself, adapters that do not fit it, and too many trained values (ConfigError)."""
    if not is_folder(stage.base) and isinstance(recipe.training_stage(stage.base), AdaptStage):
        raise _adapted_base(stage)
    # What an encoder refuses of adapters: they were put in without a look.
    try:
        type(stage.model.encoder).model_validate(stage.model.encoder.model_dump())
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"stages.{stage.name}.adapt does not fit its base: {reason}") from None
    vocabulary_size = base_vocabulary_size(stage)
    if vocabulary_size is None:
        if is_folder(stage.base):
            # Nothing is known of its size; `check_base` refuses the folder.
            return
        # Before there is a tokenizer, the pieces that are asked for stand in, as in a plan.
        vocabulary_size = recipe.tokenizer.pieces
    with torch.device("meta"), WithoutValues():
        model = Recognizer(stage.model, recipe.features.mel_bins, vocabulary_size)
    check_trained_share(stage, model)


def check_trained_share(stage: AdaptStage, model: Recognizer) -> None:
    """Refuse a stage that would train more of a model than it may (ConfigError)."""
    names = [name for name, _ in model.named_parameters()]
    frozen = set(frozen_in_stage(stage, names))
    sizes = []
    for name, parameter in model.named_parameters():
        sizes.append((name, parameter.numel(), name not in frozen))
    trained, share = trained_share(sizes)
    if share <= stage.adapt.max_trained_share:
        return
    remedy = "Lower adapt.rank, leave parts out"
    if stage.adapt.adapters is None:
        remedy = "Take method lora or bottleneck"
    raise ConfigError(
        f"Stage {stage.name} would train {trained:,} values, {share:.2%} of those of its base, and "
        f"stages.{stage.name}.adapt.max_trained_share is {stage.adapt.max_trained_share:g}. {remedy}, or raise "
        "max_trained_share."
    )


def check_base(recipe: Recipe, stage: AdaptStage) -> None:
    """Refuse a folder that is not there (CheckpointError), or that is no model to adapt on these features, and shards
    of a keep_split that are not there (ConfigError, DataError)."""
    keep = stage.adapt.keep_split
    if keep is not None and is_folder(keep):
        read_summary(keep if is_url(keep) else Path(keep))
    if not is_folder(stage.base):
        return
    where = f"The base of stage {stage.name}"
    folder = Path(stage.base)
    spec = read_spec(folder, where)
    if spec.kind != "chorus" or not spec.recognizes:
        what = f"a model of {spec.kind}"
        if spec.kind == "chorus":
            what = "an encoder that learnt without transcripts"
        raise ConfigError(
            f"{where} is the folder {folder}, which holds {what}. Name the model folder of a finished recogniser, such "
            "as runs/mini/student/model."
        )
    recognizer = read_description(folder).recognizer
    assert recognizer is not None
    if recognizer.encoder.adapters is not None:
        raise _adapted_base(stage)
    stored = read_model_features(folder)
    for key, value in recipe.features.model_dump(mode="json").items():
        stored_value = stored["config"].get(key, value)
        if stored_value != value:
            raise ConfigError(
                f"{where} is {folder}, whose features.{key} is {stored_value}, and it is {value} in this recipe. Make "
                "the features equal."
            )


def _adapted_base(stage: AdaptStage) -> ConfigError:
    return ConfigError(
        f"The base of stage {stage.name} is {stage.base}, which has adapters of its own. Adapt the model that it was "
        "made of, or merge them first: `chorus export` writes such a model folder."
    )


def unreadable_base(stage: AdaptStage, folder: Path, reason: str) -> CheckpointError:
    """The error of a base that was there when the run was started."""
    return CheckpointError(
        f"Stage {stage.name} cannot adapt the model in {folder}: {reason}. Copy the folder again from where it was "
        "trained."
    )
