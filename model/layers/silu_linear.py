"""A linear layer of activations, W silu(x) + b, that keeps x alone for its backward pass.

Autograd would keep silu(x) beside x, and both are the widest tensors of a conformer's layer: without it, the layer
keeps a quarter less. Computing it again takes about as long as writing it to memory and reading it back.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class SiluLinear(nn.Linear):
    """SiLU, linear: [..., width] to [..., out]."""

    def forward(self, input: Tensor) -> Tensor:
        # On a CPU bf16 values are half as long to move, and SiLU takes longer than that: computing it again would cost
        # a twenty-fifth of a step. So there both tensors are kept.
        is_half = input.element_size() < torch.float32.itemsize
        bf16_on_cpu = input.device.type == "cpu" and is_half
        if bf16_on_cpu or not torch.is_grad_enabled():
            active = functional.silu(input)
            return functional.linear(active, self.weight, self.bias)
        return _SiluLinear.apply(input, self.weight, self.bias)


class _SiluLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        context,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:  # pyright: ignore
        context.save_for_backward(x, weight)
        active = functional.silu(x)
        return functional.linear(active, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(context, gradient: Tensor):  # pyright: ignore
        x, weight = context.saved_tensors
        # Under autocast the gradient has the precision of the products, and x may be more precise.
        dtype = gradient.dtype
        rows = gradient.flatten(0, -2)
        grad_active = gradient @ weight.to(dtype)
        grad_active = grad_active.to(x.dtype)
        # Written over its argument, which is as wide as x and not needed again.
        grad_x = torch.ops.aten.silu_backward.grad_input(grad_active, x, grad_input=grad_active)
        grad_weight = None
        grad_bias = None
        # Not of a frozen layer.
        if context.needs_input_grad[1]:
            active = functional.silu(x)
            active = active.flatten(0, -2).to(dtype)
            grad_weight = rows.t() @ active
        if context.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias
