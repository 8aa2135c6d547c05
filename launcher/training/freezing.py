"""Parameters that a training leaves as they are: they get no gradient, no moments and no weight decay."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.recipe.freezing import frozen_names
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


def freeze(model: Model, patterns: Sequence[str]) -> Frozen:
    """Freeze the parameters that the patterns mean, of a model whose experts are spread and which no engine has yet."""
    shapes = full_shapes(model)
    # Auxiliary heads are no part of the model that a recipe speaks of.
    names = frozen_names(patterns, without_auxiliary_heads(dict(model.named_parameters())))
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    frozen_values = sum(math.prod(shapes[name]) for name in names)
    all_values = sum(math.prod(shape) for shape in shapes.values())
    return Frozen(len(names), frozen_values, len(shapes), all_values)
