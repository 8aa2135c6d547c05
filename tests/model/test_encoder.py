"""The encoder as its users see it: padding that does not matter, sharing that adds gradients up."""

import copy

import pytest
import torch

from model.encoder import Encoder, EncoderConfig
from model.layers.subsampling import SubsamplingConfig, output_length
from model.moe.router import ExpertsConfig, RouterConfig

MEL_BINS = 20


def encoder_config(**changes) -> EncoderConfig:
    values = {
        "layers": 4,
        "groups": 2,
        "width": 32,
        "heads": 2,
        "feedforward_width": 48,
        "kernel_size": 5,
        "subsampling": SubsamplingConfig(channels=4),
        "dropout": 0.0,
    }
    return EncoderConfig.model_validate(values | changes)


def build(seed: int = 0, **changes) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(encoder_config(**changes), MEL_BINS)


@pytest.mark.parametrize(
    "experts", [None, ExpertsConfig(count=3), ExpertsConfig(count=3, router=RouterConfig(per_frame=2))]
)
def test_an_utterance_is_encoded_the_same_alone_and_in_a_padded_batch(experts):
    encoder = build(experts=experts).eval()
    features = torch.randn(3, 61, MEL_BINS)
    lengths = torch.tensor([61, 40, 23])
    for row, length in enumerate(lengths.tolist()):
        features[row, length:] = 0.0
    together = encoder(features, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = encoder(features[row : row + 1, :length], lengths[row : row + 1])
        frames = output_length(length, encoder.subsampling.factor)
        assert together.lengths_B[row] == alone.lengths_B[0] == frames
        torch.testing.assert_close(together.frames_BSD[row, :frames], alone.frames_BSD[0], rtol=1e-4, atol=1e-5)


def test_padded_frames_never_reach_a_router():
    encoder = build(experts=ExpertsConfig(count=3))
    output = encoder(torch.randn(2, 50, MEL_BINS), torch.tensor([50, 21]))
    assert [int(r.counts_E.sum()) for r in output.routings] == [int(output.lengths_B.sum())] * 4


def test_an_utterance_without_frames_gives_finite_gradients():
    encoder = build(experts=ExpertsConfig(count=3))
    output = encoder(torch.zeros(1, 16, MEL_BINS), torch.tensor([0]))
    output.frames_BSD.sum().backward()
    assert torch.isfinite(output.frames_BSD).all()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize(("sharing", "expected"), [("contiguous", [0, 0, 1, 1]), ("cyclic", [0, 1, 0, 1])])
def test_layers_use_the_blocks_that_the_sharing_says(sharing, expected):
    assert encoder_config(sharing=sharing).block_of_layer == expected


@pytest.mark.parametrize("sharing", ["contiguous", "cyclic"])
def test_the_gradient_of_a_shared_block_is_the_sum_over_unshared_copies(sharing):
    experts = ExpertsConfig(count=3)
    shared = build(sharing=sharing, experts=experts)
    unshared = build(groups=4, experts=experts)
    unshared.load_state_dict(shared.state_dict(), strict=False)
    for layer, block in enumerate(shared.config.block_of_layer):
        unshared.blocks[layer].load_state_dict(shared.blocks[block].state_dict())
    features, lengths = torch.randn(2, 40, MEL_BINS), torch.tensor([40, 30])
    for encoder in (shared, unshared):
        encoder(features, lengths).frames_BSD.square().sum().backward()
    for block, module in enumerate(shared.blocks):
        copies = [unshared.blocks[layer] for layer, used in enumerate(shared.config.block_of_layer) if used == block]
        for name, parameter in module.named_parameters():
            total = sum(copy.get_parameter(name).grad for copy in copies)
            torch.testing.assert_close(parameter.grad, total, rtol=1e-4, atol=1e-5)


def test_layers_that_share_a_block_differ_by_their_own_norms():
    encoder = build(groups=1).eval()
    features, lengths = torch.randn(1, 40, MEL_BINS), torch.tensor([40])
    before = encoder(features, lengths).layers
    with torch.no_grad():
        encoder.layers[2].attention_norm.weight.mul_(2.0)
    after = encoder(features, lengths).layers
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, False]


def test_recomputing_layers_gives_the_same_gradients():
    plain = build(experts=ExpertsConfig(count=3), dropout=0.2)
    recomputed = copy.deepcopy(plain)
    recomputed.config = plain.config.model_copy(update={"activation_checkpointing": True})
    features, lengths = torch.randn(2, 40, MEL_BINS), torch.tensor([40, 30])
    for encoder in (plain, recomputed):
        torch.manual_seed(5)
        encoder(features, lengths).frames_BSD.square().sum().backward()
    for one, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 30}, "width 30"),
        ({"kernel_size": 4}, "kernel_size 4"),
        ({"groups": 3}, "4 layers"),
        ({"experts": {"count": 2, "router": {"per_frame": 3}}}, "per_frame is 3"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused_with_its_values(changes, words):
    with pytest.raises(ValueError, match=words):
        encoder_config(**changes)
