"""The depthwise convolution's own gradient against the library's."""

import pytest
import torch
from torch.nn import functional

from model.layers.convolution import ConvolutionModule
from model.layers.packing import Packing


def run(
    module: ConvolutionModule, x: torch.Tensor, plain: bool, monkeypatch
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    def library(x_BTD, kernel):
        return module.depthwise(x_BTD.unsqueeze(1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).squeeze(1)

    with monkeypatch.context() as patch:
        if plain:
            patch.setattr(module, "_convolve", library)
        x = x.clone().requires_grad_()
        norm = torch.nn.LayerNorm(x.shape[-1], dtype=x.dtype)
        output, _ = module(x, Packing(torch.tensor([[True] * 9, [True] * 6 + [False] * 3])), norm)
        module.zero_grad()
        (output * torch.arange(output.numel(), dtype=x.dtype).view_as(output).sin()).sum().backward()
    return output.detach(), [x.grad, *(parameter.grad.clone() for parameter in module.parameters())]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_its_gradients_are_those_of_the_librarys_convolution(causal, bias, monkeypatch):
    torch.manual_seed(2)
    module = ConvolutionModule(8, 5, causal, bias).double()
    x = torch.randn(15, 8, dtype=torch.float64)
    (output, gradients), (expected, expected_gradients) = (
        run(module, x, plain, monkeypatch) for plain in (False, True)
    )
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    assert len(gradients) == (7 if bias else 6)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_under_autocast_it_convolves_in_bf16_as_the_library_does(monkeypatch):
    torch.manual_seed(2)
    module = ConvolutionModule(8, 5)
    x_BTD = torch.randn(2, 7, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        actual = module._convolve(x_BTD, None)
        with torch.no_grad():
            expected = module._convolve(x_BTD, None)
    assert actual.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=0)
    actual.float().sum().backward()
    weight = module.depthwise.weight.detach().bfloat16()
    reference = weight.clone().requires_grad_()
    x_BDHT = x_BTD.unsqueeze(1).permute(0, 3, 1, 2)
    functional.conv2d(x_BDHT, reference, padding=(0, 2), groups=8).float().sum().backward()
    assert module.depthwise.weight.grad.dtype == torch.float32
    torch.testing.assert_close(module.depthwise.weight.grad, reference.grad.float(), rtol=0.02, atol=0.02)
