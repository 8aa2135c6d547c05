"""A block that several layers use starts with small steps: frames stay apart on their way through it."""

import pytest
import torch

from launcher.training.layer_metrics import effective_rank
from model.encoder import Encoder, EncoderConfig
from model.layers.subsampling import SubsamplingConfig
from model.moe.router import ExpertsConfig, RouterConfig

MEL_BINS = 20
BASE = {
    "layers": 6,
    "width": 32,
    "heads": 2,
    "feedforward_width": 128,
    "kernel_size": 5,
    "subsampling": SubsamplingConfig(channels=4),
    "dropout": 0.0,
}
BLOCKS = {
    "dense": {},
    "experts": {"experts": ExpertsConfig(count=3)},
    "experts everywhere": {"experts": ExpertsConfig(count=3, placement="both")},
    "a dense layer beside experts": {"experts": ExpertsConfig(count=2, residual=True)},
    "experts from one": {"experts": ExpertsConfig(count=2, initial="upcycled")},
    "relative positions and BatchNorm": {"positions": "relative", "convolution_norm": "batch"},
}
# The layers that use each block.
SHARED = {
    "one block": ({"groups": 1}, [6]),
    "two blocks": ({"groups": 2}, [3, 3]),
    "in turns": ({"groups": 3, "sharing": "cyclic"}, [2, 2, 2]),
    "private ends": ({"groups": 1, "private_head": 1, "private_tail": 1}, [1, 4, 1]),
    "none shared": ({}, [1] * 6),
}


def build(seed: int = 0, **changes) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(EncoderConfig.model_validate(BASE | changes), MEL_BINS)


def is_scaled(name: str) -> bool:
    """Whether a parameter of a block is of a linear layer that adds to the residual stream."""
    return name.endswith(("contract.weight", "contract.bias", "output.weight", "output.bias", "experts.w2"))


@pytest.mark.parametrize("exponent", [0.5, 1.5])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("sharing", SHARED)
def test_what_is_added_starts_smaller_by_a_power_of_the_uses_and_nothing_else_changes(block, sharing, exponent):
    changes, uses = SHARED[sharing]
    drawn = dict(build(**changes, **BLOCKS[block], branch_exponent=0).named_parameters())
    for name, parameter in build(**changes, **BLOCKS[block], branch_exponent=exponent).named_parameters():
        factor = 1.0
        if name.startswith("blocks.") and is_scaled(name):
            factor = uses[int(name.split(".")[1])] ** -exponent
        torch.testing.assert_close(parameter, factor * drawn[name], msg=name)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_module_of_a_block_adds_less(block):
    """With a large exponent the layers add next to nothing: the output is the normed input."""
    encoder = build(groups=1, **BLOCKS[block], branch_exponent=2).eval()
    with torch.no_grad():
        for _ in range(3):
            encoder.blocks[0].scale_branches(1e-3)
        output = encoder(torch.randn(2, 80, MEL_BINS), torch.tensor([80, 61]))
    normed_ND = torch.nn.functional.layer_norm(output.input_ND, output.input_ND.shape[1:])
    torch.testing.assert_close(output.layers.packed(5), normed_ND, rtol=1e-3, atol=1e-4)


def test_a_model_that_shares_nothing_starts_as_it_always_did():
    former = build(branch_exponent=0).state_dict()
    for name, tensor in build().state_dict().items():
        assert torch.equal(tensor, former[name]), name


@pytest.mark.parametrize("scope", ["layer", "group"])
def test_frames_do_not_become_alike_on_their_way_through_a_shared_block(scope):
    """As drawn the effective rank falls with depth; scaled it does not, over the mean of some draws."""
    changes = {"groups": 1, "width": 64, "norms": scope, "experts": ExpertsConfig(router=RouterConfig(scope=scope))}
    features = torch.randn(2, 200, MEL_BINS, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([200, 200])

    def share_left(exponent: float) -> float:
        """The rank of the last layer's output over that of the first's."""
        shares = []
        for seed in range(4):
            encoder = build(seed, **changes, branch_exponent=exponent).eval()
            with torch.no_grad():
                layers = encoder(features, lengths).layers
            shares.append(float(effective_rank(layers.packed(5)) / effective_rank(layers.packed(0))))
        return sum(shares) / len(shares)

    assert share_left(0) < 0.8
    assert share_left(0.5) > 0.95
    assert share_left(EncoderConfig().branch_exponent) > 0.95
