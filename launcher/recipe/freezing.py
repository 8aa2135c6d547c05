"""Which parameters of a stage's model are frozen: names with * and ?, as `freeze` of a stage lists them.

A pattern is compared with the whole dotted name of each parameter, where * also stands for dots. The name of a part
means all that is in it.
"""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from launcher.errors import ConfigError
from launcher.recipe.schema import Recipe
from launcher.recipe.stages import AdaptStage, TrainingStage
from model.export import WithoutValues
from model.masked_prediction import MaskedPredictor, MaskedPredictorConfig
from model.recognizer import Recognizer

# How many names a refusal proposes for a pattern, and lists of the model's parts.
NUM_PROPOSED = 3
# The model's parts are listed down to this level: encoder.blocks.0.
PART_DEPTH = 3


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of `freeze` means the parameter of that name."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def frozen_names(patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    """The parameters among `names` that any of the patterns means, in their order."""
    frozen = []
    for name in names:
        if any(matches(pattern, name) for pattern in patterns):
            frozen.append(name)
    return frozen


def frozen_in_stage(stage: TrainingStage, names: Iterable[str]) -> list[str]:
    """The parameters among `names` that a stage leaves as they are: by its patterns, and all that an adaptation does
    not train."""
    names = list(names)
    frozen = set(frozen_names(stage.freeze, names))
    if isinstance(stage, AdaptStage):
        for name in names:
            if not stage.adapt.trains(name):
                frozen.add(name)
    return [name for name in names if name in frozen]


def check_freeze(recipe: Recipe, stage: TrainingStage) -> None:
    """Refuse a pattern that means no parameter of the stage's model, and patterns that leave nothing to train
    (ConfigError)."""
    if not stage.freeze:
        return
    # Names do not depend on the size of the vocabulary, which is not known before there is a tokenizer.
    model: nn.Module
    with torch.device("meta"), WithoutValues():
        if isinstance(stage.model, MaskedPredictorConfig):
            model = MaskedPredictor(stage.model, recipe.features.mel_bins)
        else:
            model = Recognizer(stage.model, recipe.features.mel_bins, vocabulary_size=4)
    names = [name for name, _ in model.named_parameters()]
    for pattern in stage.freeze:
        if not frozen_names([pattern], names):
            raise ConfigError(
                f"stages.{stage.name}.freeze has the pattern {pattern!r}, which means no parameter of the stage's "
                f"model{_nearest_parts(pattern, names)}"
            )
    if len(frozen_in_stage(stage, names)) == len(names):
        raise ConfigError(
            f"stages.{stage.name}.freeze freezes all {len(names)} parameters of the stage's model, and nothing is left "
            "to train. Take a pattern out."
        )


def _nearest_parts(pattern: str, names: Iterable[str]) -> str:
    """The end of a sentence that proposes patterns near to one, and lists the model's large parts."""
    parts: set[str] = set()
    large_parts: set[str] = set()
    for name in names:
        levels = name.split(".")
        for depth in range(1, len(levels) + 1):
            parts.add(".".join(levels[:depth]))
        # What is above a list of blocks or layers is no part that says much by itself.
        depth = 1
        if levels[0] == "encoder":
            depth = PART_DEPTH if levels[1] in ("blocks", "layers") else PART_DEPTH - 1
        large_parts.add(".".join(levels[:depth]))
    word = pattern.removesuffix("*").rstrip(".")
    close = difflib.get_close_matches(word, sorted(parts), n=NUM_PROPOSED)
    proposal = "."
    if close:
        proposal = f"; the nearest are {', '.join(close)}."
    return f"{proposal} Its parts are {', '.join(sorted(large_parts))}; * stands for any characters."
