"""Rows of a matrix that change places, each at most once.

The gradient of a row is then a single row and no sum. Autograd does not know: its gradient of an index adds up row
after row, which takes a CPU many times as long as moving them. So each of the two functions has the other one as its
gradient.

Shapes: M rows, N of them, D width.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def gather_unique(x_MD: Tensor, index_N: Tensor) -> Tensor:
    """The rows of these indices, no two of which may be equal: [N, D]."""
    return _GatherUnique.apply(x_MD, index_N)


def scatter_unique(
    x_ND: Tensor,
    index_N: Tensor,
    rows: int,
) -> Tensor:
    """Undo `gather_unique`: `rows` rows of zeros with row n of x at `index_N[n]`, all different: [rows, D]."""
    return _ScatterUnique.apply(x_ND, index_N, rows)


def _scatter(
    x_ND: Tensor,
    index_N: Tensor,
    rows: int,
) -> Tensor:
    # A gather too: every place of the output takes its row, or a row of zeros behind the last one. Writing by index
    # takes a CPU several times as long.
    num_rows = len(x_ND)
    zero_row = num_rows
    places_N = torch.arange(num_rows, device=x_ND.device)
    source_M = index_N.new_full((rows,), zero_row)
    source_M.scatter_(0, index_N, places_N)
    if num_rows < rows:
        x_ND = functional.pad(x_ND, (0, 0, 0, 1))
    return x_ND.index_select(0, source_M)


class _GatherUnique(torch.autograd.Function):
    @staticmethod
    def forward(context, x_MD: Tensor, index_N: Tensor) -> Tensor:  # pyright: ignore
        context.save_for_backward(index_N)
        context.rows = len(x_MD)
        return x_MD.index_select(0, index_N)

    @staticmethod
    @once_differentiable
    def backward(context, gradient_ND: Tensor):  # pyright: ignore
        (index_N,) = context.saved_tensors
        return _scatter(gradient_ND, index_N, context.rows), None


class _ScatterUnique(torch.autograd.Function):
    @staticmethod
    def forward(
        context,
        x_ND: Tensor,
        index_N: Tensor,
        rows: int,
    ) -> Tensor:  # pyright: ignore
        context.save_for_backward(index_N)
        return _scatter(x_ND, index_N, rows)

    @staticmethod
    @once_differentiable
    def backward(context, gradient_MD: Tensor):  # pyright: ignore
        (index_N,) = context.saved_tensors
        return gradient_MD.index_select(0, index_N), None, None
