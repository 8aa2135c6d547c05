"""Subsampling by each factor: lengths, padding, what a frame is made of."""

import pytest
import torch
from test_encoder import MEL_BINS, build

from model.subsampling import ConvolutionSubsampling, SubsamplingConfig, output_length

FACTORS = pytest.mark.parametrize("factor", [4, 6, 8])


def front(factor: int) -> ConvolutionSubsampling:
    torch.manual_seed(0)
    return ConvolutionSubsampling(SubsamplingConfig(channels=16, factor=factor), MEL_BINS, 16)


@FACTORS
def test_there_are_as_many_frames_as_the_plan_counts(factor):
    for length in range(1, 50):
        frames, lengths = front(factor)(torch.randn(1, length, MEL_BINS), torch.tensor([length]))
        assert frames.shape[1] == int(lengths) == output_length(length, factor) == -(-length // factor)


@FACTORS
def test_an_utterance_is_subsampled_the_same_alone_and_padded(factor):
    encoder = build(subsampling=SubsamplingConfig(channels=4, factor=factor)).eval()
    features, lengths = torch.randn(2, 90, MEL_BINS), torch.tensor([90, 37])
    features[1, 37:] = 0.0
    together = encoder(features, lengths)
    alone = encoder(features[1:, :37], lengths[1:])
    num_frames = int(alone.lengths_B)
    torch.testing.assert_close(together.frames_BSD[1, :num_frames], alone.frames_BSD[0], rtol=1e-4, atol=1e-5)


@FACTORS
def test_a_frame_is_made_of_the_features_of_its_own_stretch_and_the_one_before(factor):
    features = torch.randn(1, 12 * factor, MEL_BINS, requires_grad=True)
    frames, _ = front(factor)(features, torch.tensor([12 * factor]))
    frames[0, 5].abs().sum().backward()
    touched = features.grad[0].abs().sum(-1).nonzero().flatten().tolist()
    assert touched == list(range(factor * 4 + 1, factor * 6))


def test_an_impossible_factor_is_refused_with_those_that_are_possible():
    with pytest.raises(ValueError, match="4, 6 or 8"):
        SubsamplingConfig.model_validate({"factor": 5})
