"""What layers share and what they own: blocks, experts in either place, routers, norms."""

import copy

import pytest
import torch
from test_encoder import MEL_BINS, build, encoder_config
from torch import Tensor

from model.encoder import Encoder, EncoderOutput
from model.moe.experts import ResidualMixture
from model.moe.router import Router, RouterConfig

EVERYTHING = {
    "private_head": 1,
    "private_tail": 1,
    "groups": 1,
    "norms": "group",
    "experts": {"count": 3, "placement": "both", "residual": True, "router": {"scope": "conditioned"}},
}


def experts(placement: str = "second", scope: str = "layer", **changes) -> dict:
    return {"count": 3, "placement": placement, "router": {"scope": scope}, **changes}


def speech() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 40, MEL_BINS), torch.tensor([40, 30])


def run(encoder: Encoder) -> EncoderOutput:
    return encoder(*speech())


@pytest.mark.parametrize(
    "changes",
    [
        {"experts": experts("first")},
        {"experts": experts("both", "group")},
        {"experts": experts(scope="global", capacity_factor=1.0)},
        {"norms": "group"},
        EVERYTHING,
    ],
)
def test_an_utterance_is_encoded_the_same_alone_and_in_a_padded_batch(changes):
    encoder = build(**changes).eval()
    features, lengths = torch.randn(2, 61, MEL_BINS), torch.tensor([61, 40])
    features[1, 40:] = 0.0
    together = encoder(features, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = encoder(features[row : row + 1, :length], lengths[row : row + 1])
        frames = together.frames_BSD[row, : together.lengths_B[row]]
        torch.testing.assert_close(frames, alone.frames_BSD[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("placement", "names", "routers"),
    [
        ("second", ["layer-00", "layer-01"], {"layers.0.router.weight", "layers.1.router.weight"}),
        (
            "first",
            ["layer-00-first", "layer-01-first"],
            {"layers.0.feedforward1_router.weight", "layers.1.feedforward1_router.weight"},
        ),
        (
            "both",
            ["layer-00-first", "layer-00-second", "layer-01-first", "layer-01-second"],
            {f"layers.{layer}.{router}.weight" for layer in (0, 1) for router in ("router", "feedforward1_router")},
        ),
    ],
)
def test_each_place_of_experts_has_its_own_stack_in_the_block_and_its_own_router_in_the_layer(
    placement, names, routers
):
    encoder = build(layers=2, groups=1, experts=experts(placement))
    parameters = {name for name, _ in encoder.named_parameters()}
    assert {name for name in parameters if "router" in name} == routers
    stacks = {name.split(".")[2] for name in parameters if ".experts.w1" in name}
    assert stacks == {f"feedforward{1 if place == 'first' else 2}" for place in encoder.config.experts.places}
    assert encoder.config.routing_names == names
    output = run(encoder)
    assert len(output.routings) == len(names)
    output.frames_BSD.square().sum().backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for name, p in encoder.named_parameters() if ".w1" in name)


def test_routings_come_first_place_first():
    encoder = build(layers=2, groups=1, experts=experts("both")).eval()
    with torch.no_grad():
        for layer in encoder.layers:
            for router in layer.routers():
                router.bias[2] = -9.0
        encoder.layers[1].feedforward1_router.bias[2] = 9.0
    output = run(encoder)
    everything = [int(routing.counts_E[2]) == int(output.lengths_B.sum()) for routing in output.routings]
    assert everything == [False, False, True, False]


@pytest.mark.parametrize(
    ("scope", "routers"),
    [
        ("layer", {f"layers.{layer}.router" for layer in range(4)}),
        ("group", {"groups.0.router", "groups.1.router"}),
        ("global", {"common.router"}),
        ("conditioned", {"common.router"}),
    ],
)
def test_a_router_belongs_to_whom_the_scope_says_and_is_stored_once(scope, routers):
    encoder = build(experts=experts(scope=scope))
    assert {name for name, module in encoder.named_modules() if isinstance(module, Router)} == routers
    tensors = encoder.state_dict().values()
    assert len({tensor.data_ptr() for tensor in tensors if tensor.numel()}) == len(tensors)


@pytest.mark.parametrize(("scope", "norms"), [("group", "layer"), ("global", "layer"), ("layer", "group")])
def test_the_gradient_of_what_layers_share_is_the_sum_over_copies(scope, norms):
    shared = build(experts=experts("both", scope), norms=norms)
    copies = build(experts=experts("both"))
    copies.load_state_dict(shared.state_dict(), strict=False)
    owners = [shared.common or shared.groups[block] for block in shared.config.block_of_layer]
    for layer, owner in zip(copies.layers, owners, strict=True):
        layer.load_state_dict(owner.state_dict(), strict=False)
    outputs = [run(encoder) for encoder in (shared, copies)]
    assert torch.equal(outputs[0].frames_BSD, outputs[1].frames_BSD)
    for output in outputs:
        output.frames_BSD.square().sum().backward()
    for owner in set(owners):
        assert list(owner.parameters())
        for name, parameter in owner.named_parameters():
            total = sum(copies.layers[i].get_parameter(name).grad for i in range(4) if owners[i] is owner)
            torch.testing.assert_close(parameter.grad, total, rtol=1e-4, atol=1e-5)


def test_a_conditioned_router_tells_layers_apart_by_their_embeddings():
    torch.manual_seed(0)
    router = Router(32, 3, RouterConfig(scope="conditioned"), num_layers=4)
    x_ND = torch.randn(50, 32)
    first, second = router(x_ND, 0), router(x_ND, 1)
    assert not torch.allclose(first.probabilities_E, second.probabilities_E, atol=1e-3)
    with torch.no_grad():
        router.embedding[1] = router.embedding[0]
    assert torch.equal(first.weights_NK, router(x_ND, 1).weights_NK)


def test_each_layers_embedding_learns_in_the_encoder():
    encoder = build(experts=experts(scope="conditioned"))
    run(encoder).frames_BSD.square().sum().backward()
    assert (encoder.common.router.embedding.grad.norm(dim=-1) > 0).all()


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("layer", [[-1, 1, 1], [1, -1, 1], [1, 1, -1], [0, 0, 0]]),
        ("group", [[-1, -1, 1], [1, 1, -1]]),
        ("global", [[0, 0, 0]]),
    ],
)
def test_a_shared_routers_bias_follows_the_loads_of_all_its_layers(scope, expected):
    encoder = build(experts=experts(router={"scope": scope, "bias_rate": 1.0}))
    counts = [[6, 0, 0], [0, 6, 0], [0, 0, 6], [2, 2, 2]]
    encoder.rebalance([torch.tensor(row) for row in counts])
    biases = [module.bias.tolist() for module in encoder.modules() if isinstance(module, Router)]
    assert biases == expected


def test_a_copy_of_an_encoder_shares_among_its_own_layers():
    encoder = build(**EVERYTHING).eval()
    other = copy.deepcopy(encoder)
    before = run(encoder).frames_BSD
    with torch.no_grad():
        for parameter in [*other.groups.parameters(), *other.common.parameters()]:
            parameter.zero_()
    assert torch.equal(run(encoder).frames_BSD, before)
    assert run(other).frames_BSD.abs().max() == 0.0


def test_layers_of_a_group_share_norms_if_told_to():
    encoder = build(norms="group").eval()
    before = run(encoder).layers
    with torch.no_grad():
        encoder.groups[1].attention_norm.weight.mul_(2.0)
    after = run(encoder).layers
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, False]
    norms = {name for name, _ in encoder.named_parameters() if "final_norm.weight" in name}
    assert norms == {"groups.0.final_norm.weight", "groups.1.final_norm.weight"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"private_head": 1, "private_tail": 2, "groups": 1}, [0, 1, 1, 1, 2, 3]),
        ({"private_tail": 2, "groups": 2}, [0, 0, 1, 1, 2, 3]),
        ({"private_head": 2, "groups": 2, "sharing": "cyclic"}, [0, 1, 2, 3, 2, 3]),
        ({"private_head": 2, "groups": None}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_private_layers_at_the_ends_have_blocks_of_their_own(changes, expected):
    config = encoder_config(layers=6, **changes)
    assert config.block_of_layer == expected
    assert len(Encoder(config, MEL_BINS).blocks) == max(expected) + 1


def test_a_batch_norm_that_a_group_shares_follows_the_moments_of_all_its_layers():
    encoder = build(norms="group", convolution_norm="batch", stochastic_depth=0.4)
    moments = run(encoder).moments
    encoder.update_norms(moments)
    for block, owner in enumerate(encoder.groups):
        together = sum(moments[layer] for layer in range(4) if encoder.config.block_of_layer[layer] == block)
        mean = (together[:32] / together[-1]).float()
        torch.testing.assert_close(owner.convolution_inner_norm.running_mean, 0.1 * mean)
    assert [layer.skipped for layer in encoder.layers] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_a_dense_layer_stands_beside_the_experts_of_both_places():
    encoder = build(experts=experts("both", residual=True))
    for block in encoder.blocks:
        assert isinstance(block.feedforward1, ResidualMixture)
        assert isinstance(block.feedforward2, ResidualMixture)


def test_experts_of_every_block_start_near_one_layer_if_upcycled():
    encoder = build(experts=experts(initial="upcycled"))
    firsts = []
    for block in encoder.blocks:
        w1 = block.feedforward2.experts.w1
        assert (w1[1] - w1[0]).norm() < 0.05 * w1[0].norm()
        assert not torch.equal(w1[1], w1[0])
        firsts.append(w1[0])
    assert (firsts[1] - firsts[0]).norm() > 0.5 * firsts[0].norm()


def test_recomputing_layers_with_every_option_gives_the_same_gradients():
    limited = EVERYTHING | {"experts": EVERYTHING["experts"] | {"capacity_factor": 1.0}}
    gradients = []
    for recomputed in (False, True):
        encoder = build(**limited, activation_checkpointing=recomputed)
        output = run(encoder)
        assert not all(routing.kept_NK.all() for routing in output.routings)
        output.frames_BSD.square().sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"private_head": 2, "private_tail": 2}, "private_head 2 and private_tail 2 leave none of 4 layers"),
        ({"private_head": 1, "groups": 2}, r"3 layers between private_head and private_tail .* groups among \[1, 3\]"),
        ({"experts": {"capacity_factor": 0}}, "capacity_factor"),
        ({"experts": {"initial_noise": 0}}, "initial_noise"),
    ],
)
def test_sharing_that_does_not_come_out_even_is_refused_with_its_values(changes, words):
    with pytest.raises(ValueError, match=words):
        encoder_config(**changes)
