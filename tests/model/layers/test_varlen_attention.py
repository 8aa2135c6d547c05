"""Attention without padding against the fused call, utterance by utterance, with its gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from model.layers.varlen_attention import attend_within


def parts_of(lengths: list[int], dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """Queries, keys and values [2, N, 8] whose frames lie as those of a projection do."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(sum(lengths), 3, 2, 8, generator=generator).to(dtype).permute(1, 2, 0, 3)
    return [part.clone().requires_grad_() for part in parts]


def fused(parts: list[torch.Tensor], lengths: list[int]) -> torch.Tensor:
    utterances = zip(*(part.split(lengths, dim=1) for part in parts), strict=True)
    return torch.cat([scaled_dot_product_attention(*(part[None] for part in one))[0] for one in utterances], dim=1)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_it_is_the_fused_attention_of_each_utterance_with_its_gradients(lengths, seed):
    """attend_within(Q, K, V) = concat(softmax(Q_u K_u^T / sqrt(K)) V_u), and so are its derivatives."""
    varlen_parts, fused_parts = parts_of(lengths, torch.float64, seed), parts_of(lengths, torch.float64, seed)
    weight = torch.randn(2, sum(lengths), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    actual, expected = attend_within(*varlen_parts, lengths), fused(fused_parts, lengths)
    torch.testing.assert_close(actual, expected)
    (actual * weight).sum().backward()
    (expected * weight).sum().backward()
    for one, other in zip(varlen_parts, fused_parts, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bf16_it_is_as_near_to_exact_attention_as_the_fused_one(autocast):
    lengths = [200, 17, 90]
    exact, varlen_parts, fused_parts = (parts_of(lengths, torch.bfloat16) for _ in range(3))
    exact = [part.detach().double().requires_grad_() for part in exact]
    weight = torch.randn(2, sum(lengths), 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual = attend_within(*varlen_parts, lengths)
    outputs = [fused(exact, lengths), actual, fused(fused_parts, lengths)]
    for output in outputs:
        (output.float() * weight).sum().backward()

    def distance(values: list[torch.Tensor], true: list[torch.Tensor]) -> float:
        return max(
            float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(values, true, strict=True)
        )

    true = [outputs[0].detach(), *(part.grad for part in exact)]
    varlen_distance = distance([actual.detach(), *(part.grad for part in varlen_parts)], true)
    fused_distance = distance([outputs[2].detach(), *(part.grad for part in fused_parts)], true)
    assert varlen_distance < 1.5 * fused_distance < 0.02


def test_without_gradients_nothing_is_kept():
    lengths = [5, 9]
    parts = [part.detach() for part in parts_of(lengths, torch.float32)]
    actual = attend_within(*parts, lengths)
    assert actual.grad_fn is None
    torch.testing.assert_close(actual, fused(parts, lengths))
