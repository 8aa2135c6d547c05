"""Rows of a matrix that change places, each at most once.

No row's gradient is then a sum, and autograd need not add up row after row, which takes a CPU many times as long as
moving them.

Shapes: M rows, N of them, D width.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def gather_unique(x_MD: Tensor, index_N: Tensor) -> Tensor:
    """The rows of these indices, no two of which may be equal: [N, D]."""
    return _Pick.apply(x_MD, index_N)


def scatter_unique(x_ND: Tensor, index_N: Tensor, rows: int) -> Tensor:
    """Undo `pick`: row n at `index_N[n]`, which are all different, among `rows` rows of zeros: [rows, D]."""
    return _Place.apply(x_ND, index_N, rows)


def _placed(x_ND: Tensor, index_N: Tensor, rows: int) -> Tensor:
    # Every place picks its row, or a row of zeros after the last: to write by index takes a CPU several times as long.
    places_N = torch.arange(len(x_ND), device=x_ND.device)
    source_M = index_N.new_full((rows,), len(x_ND)).scatter_(0, index_N, places_N)
    return (x_ND if len(x_ND) == rows else functional.pad(x_ND, (0, 0, 0, 1))).index_select(0, source_M)


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(context, x_MD: Tensor, index_N: Tensor) -> Tensor:  # pyright: ignore
        context.save_for_backward(index_N)
        context.rows = len(x_MD)
        return x_MD.index_select(0, index_N)

    @staticmethod
    @once_differentiable
    def backward(context, gradient_ND: Tensor):  # pyright: ignore
        (index_N,) = context.saved_tensors
        return _placed(gradient_ND, index_N, context.rows), None


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(context, x_ND: Tensor, index_N: Tensor, rows: int) -> Tensor:  # pyright: ignore
        context.save_for_backward(index_N)
        return _placed(x_ND, index_N, rows)

    @staticmethod
    @once_differentiable
    def backward(context, gradient_MD: Tensor):  # pyright: ignore
        (index_N,) = context.saved_tensors
        return gradient_MD.index_select(0, index_N), None, None
