"""The settings of a stage that decide its result, and how they compare with those of an earlier version of Chorus.

A version that adds a setting gives it the default that means what was done before. So a setting that a record does not
know yet, and that has its default, is no change; without that, every new option would train everything again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from launcher.recipe import EvaluateStage, Recipe, TrainingStage
from launcher.recipe.distillation import FORMER_INPUT_KEY
from launcher.recipe.search import search_files

Values = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """All settings of a stage, and of these the ones that differ from their default."""

    values: Values
    given: Values

    @classmethod
    def of(cls, settings: Callable[..., Values], *arguments: Any) -> "Settings":
        """What one of the functions below makes of its arguments; `sparse` omits what has its default."""
        return cls(settings(*arguments), settings(*arguments, sparse=True))

    def comparable_to(self, recorded: Values) -> Values:
        """The settings without those that are unknown to a record and have their default."""
        comparable = _comparable(self.values, self.given, recorded)
        if "teachers" in comparable and "teachers" in recorded:
            comparable["teachers"] = _with_recorded_keys(comparable["teachers"], recorded["teachers"])
        return comparable


def _with_recorded_keys(teachers: list[Values], recorded: list[Values]) -> list[Values]:
    """The teachers of a stage under the keys of a record, in which `input` has its former name.

    Fingerprints are over keys too: a renamed key must not make a finished stage run again.
    """
    renamed = [dict(teacher) for teacher in teachers]
    for teacher, recorded_teacher in zip(renamed, recorded, strict=False):
        if FORMER_INPUT_KEY in recorded_teacher:
            teacher[FORMER_INPUT_KEY] = teacher.pop("input")
    return renamed


def _comparable(values: Values, given: Values, recorded: Values) -> Values:
    comparable = {}
    for key, value in values.items():
        before = recorded.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            comparable[key] = _comparable(value, given.get(key) or {}, before)
        elif key in recorded or key in given:
            comparable[key] = value
    return comparable


def corpus_settings(recipe: Recipe, sparse: bool = False) -> Values:
    """Where a corpus lies is no setting: its files count by their content, as inputs."""
    places = {key.removeprefix("corpus.") for key, _ in recipe.corpus_paths()} | {"shards"}
    corpus = recipe.corpus.model_dump(mode="json", exclude=places, exclude_defaults=sparse)
    return {"seed": recipe.seed, "corpus": corpus, "sample_rate_hz": recipe.features.sample_rate_hz}


def features_settings(recipe: Recipe, sparse: bool = False) -> Values:
    return {"seed": recipe.seed, "features": recipe.features.model_dump(mode="json", exclude_defaults=sparse)}


def tokenizer_settings(recipe: Recipe, sparse: bool = False) -> Values:
    return {
        **features_settings(recipe, sparse),
        "tokenizer": recipe.tokenizer.model_dump(mode="json", exclude_defaults=sparse),
    }


def evaluation_settings(stage: EvaluateStage, sparse: bool = False) -> Values:
    """Files of a search count by their content, as inputs."""
    places = {key.removesuffix(".path"): {"path"} for key, _ in search_files(stage.search)}
    search = stage.search.model_dump(mode="json", exclude=places, exclude_defaults=sparse)
    return {"kind": stage.kind, "models": list(stage.models), "search": search}


def training_settings(recipe: Recipe, stage: TrainingStage, sparse: bool = False) -> Values:
    """Models that it starts or learns from count by their content, as inputs; what is stored of a teacher is what the
    teacher gives."""
    followed = ("checkpoint", "recovery", "validate_every", "log_every", "deepspeed")
    aside: dict[str, Any] = dict.fromkeys(("name", "about", "repeats", "batches", "augment", *followed), True)
    aside |= {"distill": {"cache"}, "teacher": True, "teachers": {"__all__": {"model"}}, "initialize_from": True}
    return {
        **stage.model_dump(mode="json", exclude=aside, exclude_defaults=sparse),
        "seed": recipe.seed_of(stage),
        "features": recipe.features.model_dump(mode="json", exclude_defaults=sparse),
        "batches": recipe.batches_of(stage).model_dump(mode="json", exclude_defaults=sparse),
        "augment": recipe.augment_of(stage).model_dump(mode="json", exclude_defaults=sparse),
        "precision": recipe.cluster.precision,
    }
