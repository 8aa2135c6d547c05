"""Stochastic depth: which utterances skip a layer, how often, and what the others weigh."""

from itertools import pairwise

import pytest
import torch
from test_encoder import MEL_BINS, build

from model.block import ConformerBlock, LayerParameters


def skips(encoder, seed: int, num_utterances: int = 64) -> torch.Tensor:
    """[layers, utterances] bool: True where the frames leave a layer as they entered it."""
    features = torch.randn(1, 24, MEL_BINS).expand(num_utterances, -1, -1)
    torch.manual_seed(seed)
    output = encoder(features, torch.full((num_utterances,), 24))
    entered = [encoder.subsampling(features, torch.tensor([24]))[0], *output.layers]
    return torch.stack([(a == b).all(-1).all(-1) for a, b in pairwise(entered)])


@torch.no_grad()
def test_deeper_layers_are_skipped_more_often_utterance_by_utterance():
    encoder = build(stochastic_depth=0.8)
    shares = torch.stack([skips(encoder, seed) for seed in range(20)]).float().mean((0, 2))
    assert shares.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.06)


@torch.no_grad()
def test_the_draw_is_the_lanes_and_evaluation_skips_nothing():
    encoder = build(stochastic_depth=0.5)
    assert torch.equal(skips(encoder, 3), skips(encoder, 3))
    assert not torch.equal(skips(encoder, 3), skips(encoder, 4))
    assert not skips(encoder.eval(), 3).any()


@torch.no_grad()
def test_what_a_kept_layer_adds_weighs_one_over_the_share_kept():
    """With modules that add a constant c: norm(x + (1/2 + 1 + 1 + 1/2) c / keep)."""
    torch.manual_seed(0)
    encoder = build(layers=1, groups=1, stochastic_depth=0.75)
    block, layer = encoder.blocks[0], encoder.layers[0]
    assert isinstance(block, ConformerBlock)
    assert isinstance(layer, LayerParameters)
    constant = torch.randn(encoder.config.width)
    outputs = (block.feedforward1.contract, block.attention.output, block.convolution.output)
    for linear in (*outputs, block.feedforward2.contract):
        linear.weight.zero_()
        linear.bias.copy_(constant)
    features, lengths = torch.randn(40, 24, MEL_BINS), torch.full((40,), 24)
    entered, _ = encoder.subsampling(features, lengths)
    actual = encoder(features, lengths).frames_BSD
    unskipped = (actual != entered).any(-1).any(-1)
    assert 0 < int(unskipped.sum()) < 40
    torch.testing.assert_close(actual[unskipped], layer.final_norm(entered + 3 * constant / 0.25)[unskipped])
