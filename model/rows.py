"""Rows of a matrix that change places, each at most once.

No row's gradient is then a sum, and autograd need not add up row after row, which takes a CPU many times as long as
moving them.

Shapes: M rows, N of them, D width.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def pick(x_MD: Tensor, index_N: Tensor) -> Tensor:
    """The rows of these indices, no two of which may be equal: [N, D]."""
    return _Pick.apply(x_MD, index_N)


def place(x_ND: Tensor, index_N: Tensor, rows: int) -> Tensor:
    """Undo `pick`: row n at `index_N[n]`, which are all different, among `rows` rows of zeros: [rows, D]."""
    return _Place.apply(x_ND, index_N, rows)


def _placed(x_ND: Tensor, index_N: Tensor, rows: int) -> Tensor:
    everywhere = len(x_ND) == rows
    output = x_ND.new_empty(x_ND.shape) if everywhere else x_ND.new_zeros(rows, x_ND.shape[1])
    return output.index_copy_(0, index_N, x_ND)


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
