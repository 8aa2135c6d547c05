"""Weights of a model's file in fp32, or half as large in fp16. Whoever opens the file computes in fp32."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from launcher.errors import ConfigError

StoredDtype: TypeAlias = Literal["fp32", "fp16"]


def stored_as(state: dict[str, Tensor], dtype: StoredDtype) -> dict[str, Tensor]:
    """The tensors of a model as its file holds them. ConfigError where a weight is too large for fp16.

    Vectors stay fp32: they are a fiftieth of the bytes, and among them are variances of BatchNorm, which may be smaller
    than what fp16 tells apart.
    """
    if dtype == "fp32":
        return state
    stored = {}
    for name, tensor in state.items():
        if tensor.dim() < 2 or not tensor.is_floating_point():
            stored[name] = tensor
            continue
        rounded = tensor.to(torch.float16)
        if rounded.isinf().any():
            raise ConfigError(
                f"The model cannot be stored in fp16: its {name} has a weight of {tensor.abs().max():.3g}, and fp16 "
                f"ends at {torch.finfo(torch.float16).max:.0f}. Store it in fp32, without --dtype."
            )
        stored[name] = rounded
    return stored
