"""The settings of a stage that decide its result, and how they compare with those of an earlier version of Chorus.

A version that adds a setting gives it the default that means what was done before, or says what was done before in
`recipe/former_defaults.py`. So a setting that a record does not know yet, and that has that value, is no change;
without that, every new option would train everything again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from data.augmentation.config import RECORDING_KINDS
from launcher.recipe import EvaluateStage, MixtureCorpus, Recipe, TrainingStage
from launcher.recipe.corpora import corpus_paths
from launcher.recipe.distillation import FORMER_INPUT_KEY
from launcher.recipe.former_defaults import FORMER_DEFAULTS
from launcher.recipe.search import search_files

Values = dict[str, Any]

# Of a training stage: what it is called, and how it is saved, followed and spread.
NOT_TRAINED = (
    "name",
    "about",
    "compare_to",
    "repeats",
    "checkpoint",
    "recovery",
    "validate_every",
    "log_every",
    "log_layers",
    "deepspeed",
)


@dataclass(frozen=True)
class Settings:
    """All settings of a stage, and of these the ones that differ from their default."""

    values: Values
    given: Values

    @classmethod
    def of(cls, settings: Callable[..., Values], *arguments: Any) -> "Settings":
        """What one of the functions below makes of its arguments; `sparse` omits what has its default."""
        values = settings(*arguments)
        given = settings(*arguments, sparse=True)
        return cls(values, given)

    def comparable_to(self, recorded: Values) -> Values:
        """The settings without those that are unknown to a record and have their default."""
        comparable = _comparable(self.values, self.given, recorded)
        if "teachers" not in comparable or "teachers" not in recorded:
            return comparable

        # A fingerprint is over keys too: a renamed key must not make a finished stage run again.
        teachers = [dict(teacher) for teacher in comparable["teachers"]]
        for teacher, recorded_teacher in zip(teachers, recorded["teachers"], strict=False):
            if FORMER_INPUT_KEY in recorded_teacher:
                teacher[FORMER_INPUT_KEY] = teacher.pop("input")
        comparable["teachers"] = teachers
        return comparable


def _comparable(values: Values, given: Values, recorded: Values, section: str = "") -> Values:
    comparable = {}
    for key, value in values.items():
        before = recorded.get(key)
        dotted = section + key
        if isinstance(value, dict) and isinstance(before, dict):
            # A new setting may stand inside a section that the record has.
            given_inside = given.get(key) or {}
            comparable[key] = _comparable(value, given_inside, before, f"{dotted}.")
        elif key in recorded:
            comparable[key] = value
        elif dotted in FORMER_DEFAULTS:
            # What the record does not know was done as the default of its time says.
            if value != FORMER_DEFAULTS[dotted][0]:
                comparable[key] = value
        elif key in given:
            comparable[key] = value
    return comparable


def corpus_settings(recipe: Recipe, sparse: bool = False) -> Values:
    """Where a corpus lies is no setting: its files count by their content, as inputs. The shares of a mixture are no
    settings of its shards either."""
    initial = {}
    joining = {}
    for label, corpus in recipe.corpora().items():
        places = {"shards"}
        for key, _ in corpus_paths(corpus, ""):
            places.add(key.removeprefix("."))
        if label in recipe.initial_labels():
            initial[label] = _dump(corpus, sparse, exclude=places)
        else:
            joining[label] = _dump(corpus, sparse, exclude=places)
    settings: Values = {
        "seed": recipe.seed,
        "corpus": initial,
        # Shards hold audio at the rate of the features; what else features are does not change them.
        "sample_rate_hz": recipe.features.sample_rate_hz,
    }
    # As without a mixture: to a run of one corpus others may be added.
    if len(initial) == 1:
        settings["corpus"] = next(iter(initial.values()))
    if joining:
        settings["joining"] = joining
    return settings


def features_settings(recipe: Recipe, sparse: bool = False) -> Values:
    """The seed counts: statistics are measured on a sample of the utterances."""
    return {"seed": recipe.seed, "features": _dump(recipe.features, sparse)}


def tokenizer_settings(recipe: Recipe, sparse: bool = False) -> Values:
    """The features count: the stage measures their statistics too."""
    settings = features_settings(recipe, sparse)
    # A given model counts by its content, as an input.
    settings["tokenizer"] = _dump(recipe.tokenizer, sparse, exclude={"model"})
    return settings


def evaluation_settings(stage: EvaluateStage, sparse: bool = False) -> Values:
    """Files of a search count by their content, as inputs."""
    places: dict[str, Any] = {}
    for key, _ in search_files(stage.search):
        places[key.removesuffix(".path")] = {"path"}
    search = _dump(stage.search, sparse, exclude=places)
    values = {"kind": stage.kind, "models": list(stage.models), "search": search}
    if stage.device is not None:
        # Named for the sake of its speed, which is then to be measured there.
        values["device"] = stage.device
    return values


def training_settings(recipe: Recipe, stage: TrainingStage, sparse: bool = False) -> Values:
    """Models that it starts or learns from count by their content, as inputs."""
    exclude: dict[str, Any] = dict.fromkeys(NOT_TRAINED, True)
    # By their content, as inputs.
    exclude["initialize_from"] = True
    if getattr(stage, "initialize_from", None) is None:
        # Without a start it says nothing.
        exclude["initialize_outputs"] = True
    exclude["base"] = True
    exclude["adapt"] = {"keep_split"}
    exclude["teacher"] = True
    exclude["teachers"] = {"__all__": {"model"}}
    # What is stored of a teacher is what the teacher gives.
    exclude["distill"] = {"cache"}
    # As they hold for the stage, from the recipe if it has none of its own.
    exclude["batches"] = True
    exclude["augment"] = True

    settings = _dump(stage, sparse, exclude=exclude)
    settings["seed"] = recipe.seed_of(stage)
    settings["features"] = _dump(recipe.features, sparse)
    settings["batches"] = _dump(recipe.batches_of(stage), sparse)
    # Where recordings of noise and the like lie is no setting: they count by their content, as inputs.
    places = {key: {"recordings"} for key in RECORDING_KINDS}
    settings["augment"] = _dump(recipe.augment_of(stage), sparse, exclude=places)
    # Of all that `cluster` says, only this changes the arithmetic.
    settings["precision"] = recipe.cluster.precision
    if isinstance(recipe.corpus, MixtureCorpus):
        mixture = recipe.corpus.settings_of(stage.steps)
        if mixture is not None:
            settings["mixture"] = mixture
    return settings


def _dump(config: BaseModel, sparse: bool, exclude: Any = None) -> Values:
    return config.model_dump(mode="json", exclude=exclude, exclude_defaults=sparse)
