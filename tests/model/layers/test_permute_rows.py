"""Rows that change places, against torch's indexing."""

import pytest
import torch

from model.layers.permute_rows import gather_unique, scatter_unique

# Some rows, all of them in another order, none.
INDICES = pytest.mark.parametrize("index", [[4, 0, 2], [3, 1, 4, 0, 2], []], ids=str)


def rows(number):
    return torch.randn(number, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)


@INDICES
def test_gathered_rows_and_their_gradients_are_those_of_indexing(index):
    x_MD, index_N = rows(5), torch.tensor(index, dtype=torch.long)
    torch.testing.assert_close(gather_unique(x_MD, index_N), x_MD[index_N], rtol=0, atol=0)
    weight = torch.arange(3.0)
    actual, expected = (
        torch.autograd.grad((y * weight).sum(), x_MD) for y in (gather_unique(x_MD, index_N), x_MD[index_N])
    )
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@INDICES
def test_scattering_undoes_gathering_and_leaves_zeros_elsewhere(index):
    """gather_unique(scatter_unique(x)) = x, and the other rows are 0."""
    x_ND, index_N = rows(len(index)), torch.tensor(index, dtype=torch.long)
    scattered_MD = scatter_unique(x_ND, index_N, 5)
    torch.testing.assert_close(scattered_MD[index_N], x_ND, rtol=0, atol=0)
    assert scattered_MD.count_nonzero() == x_ND.numel()
    assert torch.autograd.gradcheck(lambda x: scatter_unique(x, index_N, 5), x_ND)
