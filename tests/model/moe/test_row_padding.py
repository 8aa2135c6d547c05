"""The rows that experts multiply: few sizes, and the rows of others leave no trace."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.moe.experts import ExpertStack
from model.moe.row_padding import ExpertRows, expert_rows, pad_to_bucket


def test_few_numbers_of_rows_recur_and_none_is_much_larger():
    """16 numbers per octave from 256 on, at most rows / 16 more from 512 on."""
    actual = [pad_to_bucket(rows) for rows in range(1, 4097)]
    assert len(set(actual)) == 16 + 16 + 16 * 3
    assert all(rows <= more < rows + 16 for rows, more in enumerate(actual[:511], start=1))
    assert all(rows <= more <= rows * 17 / 16 for rows, more in enumerate(actual[511:], start=512))
    assert pad_to_bucket(0) == 0


def test_an_experts_rows_reach_into_the_next_rows_and_are_zero_past_the_last():
    x_MD = torch.arange(10.0).view(5, 2)
    within, beyond = ExpertRows(1, 2, 3), ExpertRows(3, 1, 4)
    assert torch.equal(within.select(x_MD), x_MD[1:4])
    assert within.select(x_MD).data_ptr() == x_MD[1:].data_ptr()
    assert torch.equal(beyond.select(x_MD), torch.tensor([[6.0, 7.0], [8.0, 9.0], [0.0, 0.0], [0.0, 0.0]]))
    within.zero_padding(x_MD[1:4])
    assert x_MD.tolist() == [[0, 1], [2, 3], [4, 5], [0, 0], [8, 9]]


@pytest.mark.parametrize(("dtype", "num_rows"), [(torch.float32, [3, 0, 20]), (torch.bfloat16, [16, 0, 32])], ids=str)
def test_only_bf16_products_on_a_cpu_get_more_rows(dtype, num_rows):
    actual = expert_rows([3, 0, 20], torch.empty(23, 4, dtype=dtype))
    assert [(rows.start, rows.num_frames, rows.num_rows) for rows in actual] == [
        (0, 3, num_rows[0]),
        (3, 0, num_rows[1]),
        (3, 20, num_rows[2]),
    ]
    assert expert_rows([3], torch.empty(3, 4, dtype=torch.bfloat16, device="meta")) == [ExpertRows(0, 3, 3)]


@settings(deadline=None, max_examples=40)
@given(counts=st.lists(st.integers(0, 40), min_size=2, max_size=5), seed=st.integers(0, 1000))
def test_an_expert_is_not_touched_by_the_frames_of_others(counts, seed):
    """|actual - expected| <= 0.02 |expected|, where expected are bf16 outputs and gradients of each expert's frames by
    themselves."""
    torch.manual_seed(seed)
    stack = ExpertStack(len(counts), 12, 20)
    torch.nn.init.normal_(stack.w3)
    x_MD = torch.randn(sum(counts), 12).to(torch.bfloat16).requires_grad_()
    weight_MD = torch.randn(sum(counts), 12).to(torch.bfloat16)
    output_MD = stack(x_MD, torch.tensor(counts))
    actual = [output_MD, *torch.autograd.grad(output_MD, [x_MD, *stack.parameters()], weight_MD)]

    alone = []
    for expert, (x_e, weight_e) in enumerate(zip(x_MD.detach().split(counts), weight_MD.split(counts), strict=True)):
        x_e = x_e.requires_grad_()
        output_e = stack(x_e, torch.tensor([len(x_e) if other == expert else 0 for other in range(len(counts))]))
        gradients = torch.autograd.grad(output_e, [x_e, *stack.parameters()], weight_e)
        alone.append([output_e, gradients[0], *(gradient[expert] for gradient in gradients[1:])])
    outputs, grads_x, *grads_of_weights = zip(*alone, strict=True)
    expected = [torch.cat(outputs), torch.cat(grads_x), *map(torch.stack, grads_of_weights)]
    for number, reference in zip(actual, expected, strict=True):
        assert (number - reference).float().norm() <= 0.02 * reference.float().norm()
