"""Rows that change places, against torch's indexing."""

import pytest
import torch

from model.layers.permute_rows import gather_unique, inverse_of, permute, permute_copies, scatter_unique

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


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_copies_of_rows_in_another_order_and_their_gradients_are_those_of_indexing(copies):
    order_M = torch.randperm(5 * copies, generator=torch.Generator().manual_seed(2))
    x_ND = rows(5)
    weight_MD = rows(5 * copies).detach()
    permuted_MD = permute_copies(x_ND, order_M, inverse_of(order_M), copies)
    expected_MD = x_ND.repeat_interleave(copies, 0)[order_M]
    assert torch.equal(permuted_MD, expected_MD)
    actual, expected = (torch.autograd.grad((y * weight_MD).sum(), x_ND) for y in (permuted_MD, expected_MD))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_a_permutation_by_the_inverse_leads_back():
    order_M = torch.tensor([3, 1, 4, 0, 2])
    inverse_M = inverse_of(order_M)
    x_MD = rows(5)
    assert torch.equal(permute(permute(x_MD, order_M, inverse_M), inverse_M, order_M), x_MD)
    assert torch.autograd.gradcheck(lambda x: permute(x, order_M, inverse_M), x_MD)
