"""Routing and experts against plain loops, and the balance losses against their known values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.experts import ExpertStack, MixtureOfExperts
from model.router import Router, RouterConfig, Routing

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


def test_one_grouped_product_equals_the_loop_over_experts():
    torch.manual_seed(0)
    stack = ExpertStack(3, 16, 32)
    torch.nn.init.normal_(stack.w3)
    x_MD, counts = torch.randn(24, 16), [10, 0, 14]
    torch.testing.assert_close(stack._grouped(x_MD, counts), stack(x_MD, counts), rtol=1e-4, atol=1e-5)


def test_experts_start_different():
    stack = ExpertStack(4, WIDTH, HIDDEN)
    assert all(not torch.equal(stack.w1[0], stack.w1[expert]) for expert in range(1, 4))


def routing(probabilities_NE: torch.Tensor) -> Routing:
    router = Router(4, probabilities_NE.shape[1], RouterConfig())
    return router._choose(probabilities_NE.log(), probabilities_NE)


def balanced() -> Routing:
    return routing(torch.eye(4).repeat(100, 1) * 0.96 + 0.01)


def collapsed() -> Routing:
    row = torch.tensor([0.9925, 0.0025, 0.0025, 0.0025])
    return routing(row.repeat(400, 1))


@pytest.mark.parametrize(("kind", "when_collapsed"), [("switch", 3.97), ("importance", 3.94)])
def test_a_balance_loss_is_1_when_even_and_near_the_number_of_experts_when_collapsed(kind, when_collapsed):
    assert float(balanced().balance_loss(kind)) == pytest.approx(1.0, abs=1e-4)
    assert float(collapsed().balance_loss(kind)) == pytest.approx(when_collapsed, abs=5e-3)


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


def test_the_z_loss_and_entropy_have_their_closed_forms():
    router = Router(4, 4, RouterConfig())
    logits = torch.zeros(10, 4)
    found = router._choose(logits, logits.softmax(-1))
    assert float(found.z) == pytest.approx(math.log(4) ** 2, rel=1e-5)
    assert float(found.entropy) == pytest.approx(math.log(4), rel=1e-5)


def test_jitter_changes_routing_in_training_only():
    torch.manual_seed(0)
    router = Router(WIDTH, 4, RouterConfig(jitter=0.3))
    x_ND = torch.randn(200, WIDTH)
    assert not torch.equal(router(x_ND).weights_NK, router(x_ND).weights_NK)
    router.eval()
    assert torch.equal(router(x_ND).weights_NK, router(x_ND).weights_NK)
