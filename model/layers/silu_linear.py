"""A linear layer of activated numbers, W silu(x) + b, that keeps x alone for its backward pass.

Autograd would keep silu(x) beside x, and both are the widest numbers of a conformer's layer: without it, the layer
keeps a quarter less. To compute it again takes about as long as to write it to memory and to read it back; of bf16
numbers, which are half as long to move, it takes a CPU longer, and a twenty-fifth of a step: there both are kept.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class SiluLinear(nn.Linear):
    """SiLU, linear: [..., width] to [..., out]."""

    def forward(self, input: Tensor) -> Tensor:
        short_on_cpu = input.device.type == "cpu" and input.element_size() < torch.float32.itemsize
        if short_on_cpu or not torch.is_grad_enabled():
            return functional.linear(functional.silu(input), self.weight, self.bias)
        return _SiluLinear.apply(input, self.weight, self.bias)


class _SiluLinear(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # pyright: ignore
        context.save_for_backward(x, weight)
        return functional.linear(functional.silu(x), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(context, gradient: Tensor):  # pyright: ignore
        x, weight = context.saved_tensors
        # Under autocast the gradient has the precision of the products, and x may be more precise.
        rows, dtype = gradient.flatten(0, -2), gradient.dtype
        active = functional.silu(x).flatten(0, -2).to(dtype)
        of_active = (gradient @ weight.to(dtype)).to(x.dtype)
        of_x = torch.ops.aten.silu_backward.grad_input(of_active, x, grad_input=of_active)
        return of_x, rows.t() @ active, rows.sum(0)
