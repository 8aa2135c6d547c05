"""Subsampling by each factor: lengths, padding, what a frame is made of."""

import pytest
import torch
from test_encoder import MEL_BINS, build

from model.layers.subsampling import ConvolutionSubsampling, SubsamplingConfig, output_length

FACTORS = pytest.mark.parametrize("factor", [4, 6, 8])


KINDS = pytest.mark.parametrize("convolutions", ["separable", "full"])


def front(factor: int, convolutions: str = "separable") -> ConvolutionSubsampling:
    torch.manual_seed(0)
    config = SubsamplingConfig.model_validate({"channels": 16, "factor": factor, "convolutions": convolutions})
    return ConvolutionSubsampling(config, MEL_BINS, 16)


@KINDS
@FACTORS
def test_there_are_as_many_frames_as_the_plan_counts(factor, convolutions):
    for length in range(1, 50):
        frames, lengths = front(factor, convolutions)(torch.randn(1, length, MEL_BINS), torch.tensor([length]))
        assert frames.shape[1] == int(lengths) == output_length(length, factor) == -(-length // factor)


@KINDS
@FACTORS
def test_an_utterance_is_subsampled_the_same_alone_and_padded(factor, convolutions):
    encoder = build(subsampling={"channels": 4, "factor": factor, "convolutions": convolutions}).eval()
    features, lengths = torch.randn(2, 90, MEL_BINS), torch.tensor([90, 37])
    features[1, 37:] = 0.0
    together = encoder(features, lengths)
    alone = encoder(features[1:, :37], lengths[1:])
    num_frames = int(alone.lengths_B)
    torch.testing.assert_close(together.frames_BSD[1, :num_frames], alone.frames_BSD[0], rtol=1e-4, atol=1e-5)


@KINDS
@FACTORS
def test_a_frame_is_made_of_the_features_of_its_own_stretch_and_the_one_before(factor, convolutions):
    features = torch.randn(1, 12 * factor, MEL_BINS, requires_grad=True)
    frames, _ = front(factor, convolutions)(features, torch.tensor([12 * factor]))
    frames[0, 5].abs().sum().backward()
    touched = features.grad[0].abs().sum(-1).nonzero().flatten().tolist()
    assert touched == list(range(factor * 4 + 1, factor * 6))


@pytest.mark.parametrize("factor", [4, 8])
def test_a_full_convolution_mixes_channels_where_it_moves_and_a_separable_one_only_after(factor):
    """With pointwise weights of identity a separable one gives channel c of channel c; a full one gives it of all."""
    separable, full = front(factor).further[0], front(factor, "full").further[0]
    with torch.no_grad():
        separable[1].weight.copy_(torch.eye(16)[:, :, None, None])
    x = torch.zeros(1, 16, 8, 8)
    x[:, 3] = 1.0
    changed = separable(x) - separable(0 * x)
    assert changed.abs().sum((0, 2, 3)).nonzero().flatten().tolist() == [3]
    assert (full(x) - full(0 * x)).abs().sum((0, 2, 3)).count_nonzero() == 16


def test_an_impossible_factor_is_refused_with_those_that_are_possible():
    with pytest.raises(ValueError, match="4, 6 or 8"):
        SubsamplingConfig.model_validate({"factor": 5})
