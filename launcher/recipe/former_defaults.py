"""Defaults that have changed since: what a run was begun with, it keeps.

A setting that a version adds usually has the default that means what was done before, and then nothing needs to be said
here. Where a better default was found, its absence in what an earlier version left means the first one, and a record
that holds a former one goes on with that. A recipe of a user that does not name the setting gets the new one, unless it
is run in a folder that was begun with a former.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel

from launcher.recipe.schema import Recipe
from launcher.recipe.stages import AnyStage, EvaluateStage
from launcher.run_folder import TRAINING_KINDS

Values = dict[str, Any]
Section = TypeVar("Section", bound=BaseModel)

# By the dotted key in a training stage, in their order: the first is what was done before there was the setting.
FORMER_DEFAULTS = {"model.encoder.branch_exponent": (0.0, 0.5)}


def former_defaults_of(stages: Iterable[Values]) -> Values:
    """The former defaults, by their dotted keys, that the first training among these stages was begun with. Stages are
    as they were recorded, with all their settings."""
    for values in stages:
        if values.get("kind") not in TRAINING_KINDS:
            continue
        begun_with = {}
        for key, formers in FORMER_DEFAULTS.items():
            recorded = _value_at(values, key, absent=formers[0])
            if recorded in formers:
                begun_with[key] = recorded
        return begun_with
    return {}


def with_former_defaults(recipe: Recipe, begun_with: Values) -> Recipe:
    """The same recipe, its training stages with these values where the recipe does not name the setting."""
    stages: list[AnyStage] = []
    for stage in recipe.stages:
        if not isinstance(stage, EvaluateStage):
            for key, former in begun_with.items():
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


def _value_at(values: Any, dotted: str, absent: Any) -> Any:
    for key in dotted.split("."):
        if not isinstance(values, dict) or key not in values:
            return absent
        values = values[key]
    return values
