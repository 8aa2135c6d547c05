"""Frozen weights get no gradient, and what lies before them gets the one that it had."""

import pytest
import torch
from torch import nn

from model.layers.silu_linear import SiluLinear
from model.moe.experts import ExpertStack

COUNTS = [5, 0, 17, 2]


def gradients(module: nn.Module, frozen: bool, *arguments) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """The gradients of the input and of the module's parameters."""
    module.requires_grad_(not frozen)
    module.requires_grad_(not frozen)
    module.zero_grad()
    x = torch.randn(sum(COUNTS), 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    output = module(x, *arguments)
    (output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum().backward()
    assert x.grad is not None
    return x.grad, {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("kind", ["experts", "linear"])
def test_a_frozen_layer_hands_on_the_gradient_of_its_input_to_the_bit(kind):
    torch.manual_seed(0)
    module: nn.Module = SiluLinear(8, 12)
    arguments: tuple = ()
    if kind == "experts":
        module = ExpertStack(len(COUNTS), 8, 12)
        arguments = (torch.tensor(COUNTS),)
    expected, of_weights = gradients(module, False, *arguments)
    assert all(gradient is not None for gradient in of_weights.values())
    found, of_frozen = gradients(module, True, *arguments)
    assert torch.equal(found, expected)
    assert all(gradient is None for gradient in of_frozen.values())


def test_a_bias_learns_beside_a_frozen_matrix():
    torch.manual_seed(0)
    module = SiluLinear(8, 12)
    _, expected = gradients(module, False)
    module.zero_grad()
    module.weight.requires_grad_(False)
    module(torch.randn(sum(COUNTS), 8, generator=torch.Generator().manual_seed(1))).mul(
        torch.linspace(-1, 2, sum(COUNTS) * 12).view(-1, 12)
    ).sum().backward()
    assert module.weight.grad is None
    assert torch.equal(module.bias.grad, expected["bias"])
