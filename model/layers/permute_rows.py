"""Rows of a matrix that change places, each at most once or each equally often.

The gradient of a row is then a single row, or a sum over a dimension. Autograd does not know: its gradient of an index
adds up row after row, which takes a CPU many times as long as moving them. So each of these functions has a gather as
its gradient, as it is one itself.

Shapes: M rows, N of them, D width, K copies of each row.
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


def inverse_of(order_M: Tensor) -> Tensor:
    """Where each row is after it was moved by `order_M`, which holds every index once: [M]."""
    places_M = torch.arange(len(order_M), device=order_M.device)
    return torch.empty_like(order_M).scatter_(0, order_M, places_M)


def permute(x_MD: Tensor, order_M: Tensor, inverse_M: Tensor) -> Tensor:
    """The rows in this order, which holds every index once: [M, D]."""
    return _PermuteCopies.apply(x_MD, order_M, inverse_M, 1)


def permute_copies(
    x_ND: Tensor,
    order_M: Tensor,
    inverse_M: Tensor,
    copies: int,
) -> Tensor:
    """K copies of each row, which would lie one after the other, in this order: [N K, D], in one gather."""
    return _PermuteCopies.apply(x_ND, order_M, inverse_M, copies)


class _PermuteCopies(torch.autograd.Function):
    @staticmethod
    def forward(
        context,
        x_ND: Tensor,
        order_M: Tensor,
        inverse_M: Tensor,
        copies: int,
    ) -> Tensor:  # pyright: ignore
        context.save_for_backward(inverse_M)
        context.copies = copies
        source_M = order_M
        if copies > 1:
            source_M = order_M // copies
        return x_ND.index_select(0, source_M)

    @staticmethod
    @once_differentiable
    def backward(context, gradient_MD: Tensor):  # pyright: ignore
        (inverse_M,) = context.saved_tensors
        gradient_MD = gradient_MD.index_select(0, inverse_M)
        if context.copies > 1:
            gradient_MD = gradient_MD.unflatten(0, (-1, context.copies)).sum(1)
        return gradient_MD, None, None, None


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
