"""BatchNorm over valid frames: torch's own where that has no padding, and statistics that follow whole steps."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encoder import MEL_BINS, build

from model.layers.batch_norm import FrameBatchNorm
from model.layers.chunk_mask import ChunksConfig

WIDTH = 6


def test_without_padding_it_is_torchs():
    torch.manual_seed(0)
    frame_norm, torch_norm = FrameBatchNorm(WIDTH), torch.nn.BatchNorm1d(WIDTH)
    with torch.no_grad():
        for norm in (frame_norm, torch_norm):
            norm.weight.copy_(torch.arange(1.0, 7.0))
            norm.bias.copy_(torch.arange(6.0))
    for _ in range(3):
        x_ND = (torch.randn(36, WIDTH) * 3 + 50).requires_grad_()
        twin = x_ND.detach().clone().requires_grad_()
        actual, moments = frame_norm(x_ND)
        expected = torch_norm(twin)
        frame_norm.update(moments)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        for output in (actual, expected):
            output.pow(3).sum().backward()
        torch.testing.assert_close(x_ND.grad, twin.grad, rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(frame_norm.weight.grad, torch_norm.weight.grad, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(frame_norm.running_mean, torch_norm.running_mean)
    torch.testing.assert_close(frame_norm.running_var, torch_norm.running_var)
    x_ND = torch.randn(10, WIDTH)
    torch.testing.assert_close(frame_norm.eval()(x_ND)[0], torch_norm.eval()(x_ND))


@settings(deadline=None, max_examples=50)
@given(frames=st.lists(st.integers(0, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_the_running_statistics_are_of_all_frames_however_they_are_dealt(frames, seed):
    """update(sum of moments(lane) for lanes) == update(moments(all frames of the step))"""
    torch.manual_seed(seed)
    lanes = [torch.randn(count, WIDTH) * 2 + 100 for count in frames]
    dealt, whole = FrameBatchNorm(WIDTH), FrameBatchNorm(WIDTH)
    dealt.update(sum(dealt(lane)[1] for lane in lanes))
    whole.update(whole(torch.cat(lanes))[1])
    torch.testing.assert_close(dealt.running_mean, whole.running_mean)
    torch.testing.assert_close(dealt.running_var, whole.running_var, rtol=1e-4, atol=1e-4)


def test_padded_frames_count_for_nothing():
    encoder = build(convolution_norm="batch")
    features, lengths = torch.randn(2, 60, MEL_BINS), torch.tensor([60, 45])
    features[1, 45:] = 0.0
    moments = torch.stack(encoder(features, lengths).moments)
    assert [int(count) for count in moments[:, -1]] == [15 + 12] * 4
    longer = torch.nn.functional.pad(features, (0, 0, 0, 20))
    torch.testing.assert_close(torch.stack(encoder(longer, lengths).moments), moments, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lengths", [[0], [1], [0, 40]])
def test_lanes_of_no_or_one_frame_stay_finite(lengths):
    encoder = build(convolution_norm="batch")
    output = encoder(torch.zeros(len(lengths), 40, MEL_BINS), torch.tensor(lengths))
    output.frames_BSD.square().sum().backward()
    assert torch.isfinite(output.frames_BSD).all()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)
    assert [int(moments[-1]) for moments in output.moments] == [int(output.lengths_B.sum())] * 4


def test_a_step_without_frames_leaves_the_statistics_alone():
    norm = FrameBatchNorm(WIDTH)
    before = copy.deepcopy(norm.state_dict())
    norm.update(norm(torch.ones(0, WIDTH))[1])
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


def test_each_layer_has_its_own_statistics_and_only_update_moves_them():
    encoder = build(convolution_norm="batch", groups=1)
    features, lengths = torch.randn(2, 60, MEL_BINS), torch.tensor([60, 45])
    before = copy.deepcopy(encoder.state_dict())
    output = encoder(features, lengths)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    encoder.update_norms(output.moments)
    means = [layer.convolution_inner_norm.running_mean for layer in encoder.layers]
    assert all(not torch.allclose(means[0], mean) for mean in means[1:])
    assert encoder.eval()(features, lengths).moments == []


def test_recomputed_layers_count_their_frames_once():
    plain = build(convolution_norm="batch", dropout=0.2)
    recomputed = copy.deepcopy(plain)
    recomputed.config = plain.config.model_copy(update={"activation_checkpointing": True})
    features, lengths = torch.randn(2, 40, MEL_BINS), torch.tensor([40, 30])
    moments = []
    for encoder in (plain, recomputed):
        torch.manual_seed(5)
        output = encoder(features, lengths)
        output.frames_BSD.square().sum().backward()
        moments.append(torch.stack(output.moments))
    torch.testing.assert_close(*moments)
    for one, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("changes", [{}, {"positions": "relative", "chunks": ChunksConfig(full_context=0.0)}])
def test_in_bf16_statistics_stay_fp32_and_the_encoder_close(changes):
    encoder = build(convolution_norm="batch", causal_convolution=True, **changes)
    features, lengths = torch.randn(2, 60, MEL_BINS), torch.tensor([60, 45])
    torch.manual_seed(0)
    expected = encoder(features, lengths)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        actual = encoder(features, lengths)
    actual.frames_BSD.square().sum().backward()
    assert all(moments.dtype == torch.float64 for moments in actual.moments)
    torch.testing.assert_close(torch.stack(actual.moments), torch.stack(expected.moments), rtol=0.05, atol=0.5)
    assert (actual.frames_BSD - expected.frames_BSD)[0].abs().mean() < 0.02
