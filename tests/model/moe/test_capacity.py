"""Experts with a capacity: which choices they keep, and what happens to the others."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.moe.experts import MixtureOfExperts
from model.moe.router import Router, RouterConfig, pool, within_capacity

WIDTH, HIDDEN = 12, 20


def build(factor: float | None, per_frame: int = 1) -> tuple[Router, MixtureOfExperts]:
    torch.manual_seed(0)
    router = Router(WIDTH, 4, RouterConfig(per_frame=per_frame), factor)
    return router, MixtureOfExperts(4, WIDTH, HIDDEN)


@settings(deadline=None, max_examples=50)
@given(
    num_frames=st.integers(0, 40),
    num_experts=st.integers(2, 6),
    per_frame=st.integers(1, 2),
    factor=st.sampled_from([0.3, 1.0, 1.1, 1.25, 2.0]),
    seed=st.integers(0, 1000),
)
def test_an_expert_keeps_its_likeliest_choices(num_frames, num_experts, per_frame, factor, seed):
    """Per expert, with C = ceil(factor N K / E): kept == min(choices, C) and min p(kept) >= max p(dropped)."""
    torch.manual_seed(seed)
    # Few different probabilities, so that there are ties.
    probabilities, experts = (torch.randint(4, (num_frames, num_experts)) + torch.rand(num_experts)).topk(per_frame)
    kept = within_capacity(experts, probabilities, num_experts, factor)
    capacity = math.ceil(round(factor * num_frames * per_frame / num_experts, 6))
    for expert in range(num_experts):
        chosen = experts.flatten() == expert
        p, k = probabilities.flatten()[chosen], kept.flatten()[chosen]
        assert int(k.sum()) == min(len(p), capacity)
        if 0 < k.sum() < len(k):
            least = p[k].min()
            assert least >= p[~k].max()
            tied = k[p == least].tolist()
            assert tied == sorted(tied, reverse=True)


def test_a_factor_of_11_tenths_over_ten_choices_is_a_capacity_of_eleven():
    experts = torch.zeros(20, 1, dtype=torch.int64)
    assert int(within_capacity(experts, torch.rand(20, 1), 2, 1.1).sum()) == 11


@pytest.mark.parametrize("per_frame", [1, 2])
def test_dropped_choices_add_nothing_and_the_others_what_they_always_do(per_frame):
    router, mixture = build(0.5, per_frame)
    x_ND = torch.randn(40, WIDTH)
    routing = router(x_ND)
    assert 0 < int(routing.kept_NK.sum()) <= 4 * math.ceil(0.5 * 40 * per_frame / 4)
    without = routing._replace(kept_NK=None, weights_NK=routing.weights_NK * routing.kept_NK)
    torch.testing.assert_close(mixture(x_ND, routing), mixture(x_ND, without))
    passed_by = ~routing.kept_NK.any(dim=1)
    assert passed_by.any()
    assert mixture(x_ND, routing)[passed_by].abs().max() == 0.0


def test_balance_is_measured_before_anything_is_dropped():
    x_ND = torch.randn(40, WIDTH) + 1.0
    limited, unlimited = build(0.5)[0](x_ND), build(None)[0](x_ND)
    assert torch.equal(limited.counts_E, unlimited.counts_E)
    assert torch.equal(limited.balance_loss("switch"), unlimited.balance_loss("switch"))


def test_a_capacity_that_holds_every_choice_changes_nothing():
    x_ND = torch.randn(40, WIDTH)
    outputs = []
    for factor in (None, 4.0):
        router, mixture = build(factor)
        outputs.append(mixture(x_ND, router(x_ND)))
    assert torch.equal(*outputs)


def test_nothing_is_dropped_in_evaluation():
    router, _ = build(0.25)
    x_ND = torch.randn(40, WIDTH)
    assert not router(x_ND).kept_NK.all()
    assert router.eval()(x_ND).kept_NK is None


def test_pooled_routings_count_the_drops_of_all():
    router, _ = build(0.5)
    routings = [router(torch.randn(40, WIDTH)) for _ in range(3)]
    assert int(pool(routings).kept_NK.sum()) == sum(int(routing.kept_NK.sum()) for routing in routings)
