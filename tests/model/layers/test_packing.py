"""Packed frames are the valid ones, and come back to their places."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encoder import MEL_BINS, build

from model.layers.attention import rotate
from model.layers.packing import Packing
from model.layers.subsampling import valid_mask


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_pad_of_pack_is_the_batch_with_silent_padding_and_pack_of_pad_changes_nothing(lengths):
    """pad(pack(x)) == x where valid, 0 elsewhere; pack(pad(y)) == y; gradients too"""
    valid_BT = torch.arange(6) < torch.tensor(lengths)[:, None]
    packing = Packing(valid_BT)
    x_BTD = torch.randn(*valid_BT.shape, 3, dtype=torch.float64, requires_grad=True)
    packed = packing.pack(x_BTD)
    assert torch.equal(packed, x_BTD[valid_BT])
    assert torch.equal(packing.rows, valid_BT.nonzero()[:, 0])
    assert torch.equal(packing.pad(packed), torch.where(valid_BT[..., None], x_BTD, 0.0))
    assert torch.equal(packing.pack(packing.pad(packed)), packed)
    weights = torch.randn_like(x_BTD)
    (packing.pad(packed) * weights).sum().backward()
    assert torch.equal(x_BTD.grad, torch.where(valid_BT[..., None], weights, 0.0))


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5), gap=st.integers(0, 3))
def test_rows_in_one_have_zeros_between_them_and_come_back(lengths, gap):
    """each frame sees the same within the gap as in the padded batch"""
    packing = Packing(torch.arange(6) < torch.tensor(lengths)[:, None])
    x_ND = torch.randn(sum(lengths), 3, dtype=torch.float64, requires_grad=True)
    spaced = packing.pad_between(x_ND, gap)
    assert torch.equal(packing.unpad_between(spaced, gap), x_ND)
    assert spaced.numel() == spaced.count_nonzero() + (3 * gap * len(lengths) if packing.padded else 0)

    def box(x_BTD):
        padded = torch.nn.functional.pad(x_BTD, (0, 0, gap, gap))
        return sum(padded[:, shift : shift + x_BTD.shape[1]] for shift in range(2 * gap + 1))

    expected = packing.pack(box(packing.pad(x_ND)))
    torch.testing.assert_close(packing.unpad_between(box(spaced), gap), expected)
    weights = torch.randn_like(expected)
    (padded_gradient,) = torch.autograd.grad((expected * weights).sum(), x_ND)
    (spaced_gradient,) = torch.autograd.grad((packing.unpad_between(box(spaced), gap) * weights).sum(), x_ND)
    torch.testing.assert_close(spaced_gradient, padded_gradient)


def test_gradients_of_packing_and_rotation_are_those_of_small_changes():
    packing = Packing(torch.tensor([[True, True, False], [True, False, False]]))
    x_BTD = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(packing.pack, x_BTD)
    assert torch.autograd.gradcheck(packing.pad, torch.randn(3, 4, dtype=torch.float64, requires_grad=True))
    angles = torch.randn(3, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: rotate(x, angles.cos(), angles.sin()), x_BTD)


def test_a_rotation_turns_pairs_and_keeps_their_lengths():
    x = torch.tensor([[1.0, 0.0, 0.0, 2.0]])  # pairs (1, 0) and (0, 2)
    quarter = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    torch.testing.assert_close(rotate(x, *quarter), torch.tensor([[0.0, -2.0, 1.0, 0.0]]))


@pytest.mark.parametrize("positions", ["rotary", "none"])
def test_utterances_attended_to_one_by_one_give_what_the_padded_batch_gives(positions, monkeypatch):
    encoder = build(positions=positions, groups=1).double()
    features, lengths = torch.randn(4, 80, MEL_BINS).double(), torch.tensor([80, 20, 0, 33])
    for row, length in enumerate(lengths):
        features[row, length:] = 0.0
    gradients, outputs = [], []
    for uneven in (True, False):
        monkeypatch.setattr(Packing, "uneven", uneven)
        encoder.zero_grad()
        output = encoder(features, lengths).frames_BSD
        output.square().sum().backward()
        outputs.append(output.detach())
        gradients.append([parameter.grad.clone() for parameter in encoder.parameters()])
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)


def test_a_batch_is_uneven_when_a_fifth_of_its_pairs_of_frames_is_padding():
    assert not Packing(valid_mask(torch.tensor([10, 9, 9, 10]), 10)).uneven
    assert Packing(valid_mask(torch.tensor([10, 7, 9, 8]), 10)).uneven
