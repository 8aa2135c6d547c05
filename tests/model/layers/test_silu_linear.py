"""SiLU and a linear layer in one, against the two of torch."""

import pytest
import torch
from torch.nn import functional

from model.layers.silu_linear import SiluLinear

SHAPES = pytest.mark.parametrize("shape", [(11, 6), (2, 5, 6), (0, 6)], ids=str)


def layer_and_input(shape, dtype=torch.float64):
    torch.manual_seed(1)
    return SiluLinear(6, 4).to(dtype), torch.randn(shape, dtype=dtype, requires_grad=True)


def gradients(output, layer, x):
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    return torch.autograd.grad((output * weight).float().sum(), [x, layer.weight, layer.bias])


@SHAPES
def test_it_is_silu_and_a_linear_layer_with_their_gradients(shape):
    """y = W silu(x) + b."""
    layer, x = layer_and_input(shape)
    actual, expected = layer(x), functional.linear(functional.silu(x), layer.weight, layer.bias)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    torch.testing.assert_close(gradients(actual, layer, x), gradients(expected, layer, x))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_it_is_what_the_two_are(dtype):
    """`dtype` is that of its input; weights are fp32."""
    layer, _ = layer_and_input((50, 6), torch.float32)
    x = torch.randn(50, 6).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = layer(x), functional.linear(functional.silu(x), layer.weight, layer.bias)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    actual_gradients, expected_gradients = gradients(actual, layer, x), gradients(expected, layer, x)
    assert (
        [g.dtype for g in actual_gradients]
        == [g.dtype for g in expected_gradients]
        == [dtype, torch.float32, torch.float32]
    )
    torch.testing.assert_close(actual_gradients, expected_gradients, rtol=2**-7, atol=1e-3)


def saved_tensors(layer, x):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        layer(x)
    return saved


def test_it_keeps_its_input_and_its_weight_alone():
    layer, x = layer_and_input((11, 6))
    assert {tensor.data_ptr() for tensor in saved_tensors(layer, x)} == {x.data_ptr(), layer.weight.data_ptr()}


def test_on_a_cpu_it_keeps_bf16_activations_too():
    layer, x = layer_and_input((11, 6), torch.bfloat16)
    assert any(torch.equal(tensor, functional.silu(x)) for tensor in saved_tensors(layer, x))
