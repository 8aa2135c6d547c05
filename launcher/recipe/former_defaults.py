"""Defaults that have changed since: what a run was begun with, it keeps.

A setting that a version adds usually has the default that means what was done before, and then nothing needs to be said
here. Where a better default was found, its absence in what an earlier version left means the former one. A recipe of a
user that does not name the setting gets the new one, unless it is run in a folder that was begun with the former.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel

from launcher.recipe.schema import Recipe
from launcher.recipe.stages import AnyStage, EvaluateStage
from launcher.run_folder import TRAINING_KINDS

Values = dict[str, Any]
Section = TypeVar("Section", bound=BaseModel)

# By the dotted key in a training stage.
FORMER_DEFAULTS = {"model.encoder.branch_exponent": 0.0}


def begun_with_former_defaults(stages: Iterable[Values]) -> bool:
    """Whether any training stage among these, as they were recorded with all their settings, lacks such a setting."""
    for values in stages:
        if values.get("kind") not in TRAINING_KINDS:
            continue
        if any(not _holds(values, key) for key in FORMER_DEFAULTS):
            return True
    return False


def with_former_defaults(recipe: Recipe) -> Recipe:
    """The same recipe, its training stages with the former defaults where the recipe does not name the setting."""
    stages: list[AnyStage] = []
    for stage in recipe.stages:
        if not isinstance(stage, EvaluateStage):
            for key, former in FORMER_DEFAULTS.items():
                stage = _with_value(stage, key, former)
        stages.append(stage)
    return recipe.model_copy(update={"stages": tuple(stages)})


def _with_value(section: Section, dotted: str, value: Any) -> Section:
    """The section with a value at a dotted key, unless the recipe names that setting."""
    key, _, rest = dotted.partition(".")
    if rest:
        before = getattr(section, key)
        after = _with_value(before, rest, value)
        if after is before:
            return section
        return section.model_copy(update={key: after})
    # model_fields_set holds what the recipe names.
    if key in section.model_fields_set:
        return section
    return section.model_copy(update={key: value})


def _holds(values: Any, dotted: str) -> bool:
    for key in dotted.split("."):
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True
