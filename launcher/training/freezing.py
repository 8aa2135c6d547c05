"""Parameters that a training leaves as they are: they get no gradient, no moments and no weight decay."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from launcher.recipe.freezing import frozen_in_stage
from launcher.recipe.stages import TrainingStage
from launcher.training.fragments import full_shapes
from model.masked_prediction import Model
from model.student import without_auxiliary_heads


@dataclass(frozen=True)
class Frozen:
    """How many parameters and values are frozen, of how many; experts count whichever process holds them."""

    parameters: int
    values: int
    all_parameters: int
    all_values: int

    def describe(self) -> str:
        share = self.values / self.all_values
        return (
            f"frozen: {self.parameters} of {self.all_parameters} parameters with {self.values:,} of "
            f"{self.all_values:,} values ({share:.1%})"
        )


def freeze_stage(model: Model, stage: TrainingStage) -> Frozen:
    """Freeze what a stage does not train of its model."""
    # Auxiliary heads are no part of the model that a recipe speaks of.
    return freeze(model, frozen_in_stage(stage, without_auxiliary_heads(dict(model.named_parameters()))))


def freeze(model: Model, names: Iterable[str]) -> Frozen:
    """Freeze these parameters of a model whose experts are spread and which no engine has yet."""
    names = list(names)
    shapes = full_shapes(model)
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    frozen_values = sum(math.prod(shapes[name]) for name in names)
    all_values = sum(math.prod(shape) for shape in shapes.values())
    return Frozen(len(names), frozen_values, len(shapes), all_values)
