"""Routing and experts against plain loops, and the balance losses against their known values."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.moe.experts import ExpertStack, MixtureOfExperts, ResidualMixture, build_experts
from model.moe.router import ExpertsConfig, Router, RouterConfig, Routing, pool

WIDTH, HIDDEN = 12, 20


def one_frame(stack: ExpertStack, expert: int, x_D: torch.Tensor) -> torch.Tensor:
    """An expert applied to one frame, written out from the stacks."""
    bias1, bias2 = stack.w3[expert, 0, : stack.hidden], stack.w3[expert, 0, stack.hidden :]
    hidden = stack.w1[expert] @ x_D + bias1
    return stack.w2[expert] @ (hidden * torch.sigmoid(hidden)) + bias2


@settings(deadline=None, max_examples=25)
@given(
    num_frames=st.integers(0, 30),
    num_experts=st.integers(2, 6),
    per_frame=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
@example(num_frames=0, num_experts=2, per_frame=2, seed=0)
def test_a_mixture_equals_a_loop_over_frames(num_frames, num_experts, per_frame, seed):
    torch.manual_seed(seed)
    router = Router(WIDTH, num_experts, RouterConfig(per_frame=per_frame))
    mixture = MixtureOfExperts(num_experts, WIDTH, HIDDEN)
    torch.nn.init.normal_(mixture.experts.w3)
    x_ND = torch.randn(num_frames, WIDTH)
    output = mixture(x_ND, router(x_ND))
    for x_D, y_D in zip(x_ND, output, strict=True):
        probabilities = (router.weight @ x_D).softmax(0)
        best = probabilities.topk(per_frame).indices
        weights = probabilities[best] if per_frame == 1 else probabilities[best] / probabilities[best].sum()
        expected = sum(w * one_frame(mixture.experts, int(e), x_D) for w, e in zip(weights, best, strict=True))
        torch.testing.assert_close(y_D, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_frame", [1, 2])
def test_the_router_learns_through_the_weights(per_frame):
    torch.manual_seed(0)
    router = Router(WIDTH, 4, RouterConfig(per_frame=per_frame))
    mixture = MixtureOfExperts(4, WIDTH, HIDDEN)
    x_ND = torch.randn(50, WIDTH)
    mixture(x_ND, router(x_ND)).square().sum().backward()
    assert router.weight.grad.norm() > 1e-3


def test_gradients_of_experts_are_those_of_finite_differences():
    torch.manual_seed(0)
    stack = ExpertStack(3, 4, 5).double()
    x_MD = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn_like(weight).requires_grad_() for weight in (stack.w1, stack.w2, stack.w3)]

    def run(x_MD, w1, w2, w3):
        return torch.func.functional_call(stack, {"w1": w1, "w2": w2, "w3": w3}, (x_MD, torch.tensor([4, 0, 2])))

    assert torch.autograd.gradcheck(run, (x_MD, *weights))


def test_in_bf16_the_gradients_of_fp32_weights_are_fp32_and_near_those_of_fp32():
    torch.manual_seed(0)
    stack, x_MD, counts = ExpertStack(3, 64, 128), torch.randn(90, 64), torch.tensor([30, 20, 40])
    stack(x_MD, counts).square().mean().backward()
    precise = [weight.grad for weight in stack.parameters()]
    stack.zero_grad()
    stack(x_MD.to(torch.bfloat16), counts).float().square().mean().backward()
    for weight, expected in zip(stack.parameters(), precise, strict=True):
        assert weight.grad.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(weight.grad.flatten(), expected.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("counts", [[10, 0, 14], [0, 24, 0], [3, 4, 0]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_grouped_product_and_its_gradients_equal_the_loop_over_experts(counts, dtype):
    """In fp32 to 1e-5, and in bf16 to the rounding of sums in another order. Rows of no expert count for nothing."""
    torch.manual_seed(0)
    stack = ExpertStack(3, 16, 32)
    torch.nn.init.normal_(stack.w3)
    x_MD, weight_MD = torch.randn(24, 16), torch.randn(24, 16)
    weight_MD[sum(counts) :] = 0
    results = []
    for is_grouped in (False, True):
        stack.zero_grad()
        rows_MD = x_MD.to(dtype).requires_grad_()
        with mock.patch.object(ExpertStack, "is_grouped", lambda *_, grouped=is_grouped: grouped):
            output_MD = stack(rows_MD, torch.tensor(counts)) * weight_MD.to(dtype)
        output_MD.sum().backward()
        results.append([output_MD, rows_MD.grad, *[weight.grad for weight in stack.parameters()]])
    rtol, atol = (1e-5, 1e-5) if dtype == torch.float32 else (2e-2, 0.1)
    for loop, grouped in zip(*results, strict=True):
        torch.testing.assert_close(grouped, loop, rtol=rtol, atol=atol)


def test_a_grouped_product_is_only_used_where_a_gpu_has_it():
    stack, odd = ExpertStack(2, 16, 32), ExpertStack(2, 12, 32)
    on_gpu = mock.Mock(is_cuda=True, dtype=torch.bfloat16, shape=(5, 16))
    assert stack.is_grouped(on_gpu)
    assert not stack.is_grouped(mock.Mock(is_cuda=True, dtype=torch.float32, shape=(5, 16)))
    assert not stack.is_grouped(torch.zeros(5, 16, dtype=torch.bfloat16))
    assert not odd.is_grouped(mock.Mock(is_cuda=True, dtype=torch.bfloat16, shape=(5, 12)))


def test_experts_start_different():
    stack = ExpertStack(4, WIDTH, HIDDEN)
    assert all(not torch.equal(stack.w1[0], stack.w1[expert]) for expert in range(1, 4))


def test_upcycled_experts_start_near_one_dense_layer_and_different():
    torch.manual_seed(0)
    stacks = [
        build_experts(ExpertsConfig(initial="upcycled", initial_noise=noise), WIDTH, HIDDEN).experts
        for noise in (0.02, 0.5)
    ]
    for stack, noise in zip(stacks, (0.02, 0.5), strict=True):
        for weight in (stack.w1, stack.w2):
            apart = (weight[1:] - weight[:1]).std() / weight[:1].std()
            assert apart.item() == pytest.approx(noise * 2**0.5, rel=0.2)


def test_a_dense_layer_beside_the_experts_is_mixed_in_frame_by_frame():
    torch.manual_seed(0)
    residual = build_experts(ExpertsConfig(residual=True), WIDTH, HIDDEN)
    assert isinstance(residual, ResidualMixture)
    router, x_ND = Router(WIDTH, 4, RouterConfig()), torch.randn(30, WIDTH)
    routing = router(x_ND)
    share_N2 = residual.coefficients(x_ND).softmax(-1)
    expected = share_N2[:, :1] * residual.mixture(x_ND, routing) + share_N2[:, 1:] * residual.dense(x_ND)
    torch.testing.assert_close(residual(x_ND, routing), expected)
    assert share_N2[:, 0].std() > 0.01
    residual(x_ND, routing).square().sum().backward()
    assert all(parameter.grad.norm() > 0 for parameter in residual.parameters())


def routing(probabilities_NE: torch.Tensor, per_frame: int = 1) -> Routing:
    router = Router(4, probabilities_NE.shape[1], RouterConfig(per_frame=per_frame))
    return router.choose(probabilities_NE.log().t())


def balanced() -> Routing:
    return routing(torch.eye(4).repeat(100, 1) * 0.96 + 0.01)


def collapsed() -> Routing:
    row = torch.tensor([0.9925, 0.0025, 0.0025, 0.0025])
    return routing(row.repeat(400, 1))


@pytest.mark.parametrize(("kind", "when_collapsed"), [("switch", 3.97), ("first_choice", 3.97), ("importance", 3.94)])
def test_a_balance_loss_is_1_when_even_and_near_the_number_of_experts_when_collapsed(kind, when_collapsed):
    assert float(balanced().balance_loss(kind)) == pytest.approx(1.0, abs=1e-4)
    assert float(collapsed().balance_loss(kind)) == pytest.approx(when_collapsed, abs=5e-3)


@pytest.mark.parametrize("kind", ["switch", "first_choice", "importance"])
@pytest.mark.parametrize("per_frame", [1, 2])
def test_a_balance_loss_falls_as_routing_gets_more_even(kind, per_frame):
    torch.manual_seed(0)
    logits_NE, towards_first = torch.randn(400, 4), torch.tensor([1.0, 0.0, 0.0, 0.0])
    losses = [
        float(routing((logits_NE + pull * towards_first).softmax(-1), per_frame).balance_loss(kind))
        for pull in (3.0, 2.0, 1.0, 0.5, 0.0)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 1.3
    assert losses[-1] == pytest.approx(1.0, abs=0.02)


def test_with_two_choices_per_frame_the_first_one_can_collapse_unseen_by_the_share_of_all():
    """All frames go to expert 0 first, and second to 1, 2 or 3 in turn: f is (1/2, 1/6, 1/6, 1/6) or (1, 0, 0, 0)."""
    second_N = torch.arange(300) % 3 + 1
    probabilities_NE = torch.full((300, 4), 0.05)
    probabilities_NE[:, 0] = 0.5
    probabilities_NE[torch.arange(300), second_N] = 0.4
    actual = routing(probabilities_NE, per_frame=2)
    assert float(actual.balance_loss("first_choice")) == pytest.approx(4 * 0.5, rel=1e-5)
    assert float(actual.balance_loss("switch")) == pytest.approx(4 * (0.5 / 2 + 3 * (0.5 / 3) / 6), rel=1e-5)


def test_layers_that_differ_are_balanced_together():
    first, second = torch.tensor([[0.98, 0.02]]).repeat(10, 1), torch.tensor([[0.02, 0.98]]).repeat(10, 1)
    layers = [routing(first), routing(second)]
    for kind in ("switch", "first_choice", "importance"):
        assert min(float(layer.balance_loss(kind)) for layer in layers) > 1.9
        assert float(pool(layers).balance_loss(kind)) == pytest.approx(1.0)
    assert pool(layers[:1]).balance_loss("switch") == layers[0].balance_loss("switch")


def test_sparsity_falls_from_the_root_of_the_number_of_experts_to_1_as_frames_are_decided():
    undecided = torch.full((10, 4), 0.25)
    # Even over all frames, each with a favourite of 0.428 beside three of 0.191.
    leaning = torch.eye(4).repeat(25, 1) * (0.4279 - 0.1907) + 0.1907
    assert float(routing(undecided).sparsity) == pytest.approx(2.0)
    assert float(routing(leaning).sparsity) == pytest.approx(1.85, abs=1e-3)
    assert float(collapsed().sparsity) == pytest.approx(1.01, abs=5e-3)
    assert float(routing(torch.zeros(0, 4)).sparsity) == 0.0


def test_sparsity_pushes_frames_to_decide():
    torch.manual_seed(0)
    router, x_ND = Router(WIDTH, 4, RouterConfig()), torch.randn(200, WIDTH)
    optimizer = torch.optim.SGD(router.parameters(), lr=1.0)
    before = float(router(x_ND).entropy)
    for _ in range(50):
        optimizer.zero_grad()
        router(x_ND).sparsity.backward()
        optimizer.step()
    assert float(router(x_ND).entropy) < 0.8 * before


def test_the_z_loss_pushes_logits_towards_zero():
    torch.manual_seed(0)
    router, x_ND = Router(WIDTH, 4, RouterConfig()), torch.randn(200, WIDTH)
    optimizer = torch.optim.SGD(router.parameters(), lr=0.05)
    before = float((x_ND @ router.weight.detach().T).square().mean())
    for _ in range(50):
        optimizer.zero_grad()
        router(x_ND).z.backward()
        optimizer.step()
    assert float((x_ND @ router.weight.detach().T).square().mean()) < 0.5 * before


def test_the_balance_loss_pushes_towards_even_routing():
    torch.manual_seed(0)
    router = Router(WIDTH, 4, RouterConfig())
    x_ND = torch.randn(400, WIDTH) + 1.0
    with torch.no_grad():
        router.weight[0] += 0.5
    optimizer = torch.optim.SGD(router.parameters(), lr=0.3)
    before = router(x_ND).counts_E.max()
    for _ in range(100):
        optimizer.zero_grad()
        router(x_ND).balance_loss("switch").backward()
        optimizer.step()
    assert before > 250
    assert router(x_ND).counts_E.max() < 150


def test_the_loss_free_bias_moves_the_choice_but_not_the_weights():
    torch.manual_seed(0)
    router = Router(WIDTH, 4, RouterConfig(bias_rate=0.02))
    x_ND = torch.randn(400, WIDTH) + 1.0
    with torch.no_grad():
        router.weight[0] += 0.5
    before = router(x_ND)
    for _ in range(200):
        router.rebalance(router(x_ND).counts_E)
    after = router(x_ND)
    assert before.counts_E.max() > 250
    assert after.counts_E.max() < 130
    torch.testing.assert_close(after.probabilities_E, before.probabilities_E)


def test_without_a_rate_the_loss_free_bias_stays():
    router = Router(WIDTH, 4, RouterConfig())
    router.rebalance(torch.tensor([9, 0, 0, 0]))
    assert router.bias.abs().max() == 0.0


def test_the_z_loss_and_entropy_have_their_closed_forms():
    router = Router(4, 4, RouterConfig())
    logits = torch.zeros(10, 4)
    actual = router.choose(logits.t())
    assert float(actual.z) == pytest.approx(math.log(4) ** 2, rel=1e-5)
    assert float(actual.entropy) == pytest.approx(math.log(4), rel=1e-5)


def test_jitter_changes_routing_in_training_only():
    torch.manual_seed(0)
    router = Router(WIDTH, 4, RouterConfig(jitter=0.3))
    x_ND = torch.randn(200, WIDTH)
    assert not torch.equal(router(x_ND).weights_NK, router(x_ND).weights_NK)
    router.eval()
    assert torch.equal(router(x_ND).weights_NK, router(x_ND).weights_NK)
