"""Which numbers a finished model computes with on the processors: fp32, bf16, or products of int8.

bf16 is torch's autocast, as in trainings, over weights that are stored so. In int8 every linear layer and every expert
has its weights as bytes, a scale for each output, and each of its input rows is rounded to bytes by a scale of its own:
what a recording gives does not depend on those beside it. The layers that write logits, norms, routers, convolutions
and attention's scores stay fp32.

Why not a library: torch.ao.quantization is to be removed, its rows share one scale, and torchao 0.18 is slower than
fp32 on CPUs without a compiler at run time (docs/performance.md has figures).

Shapes: R rows, D inputs, F outputs, M frames sorted by expert.
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from launcher.errors import ConfigError
from launcher.inference.finished_model import FinishedModel
from model.layers.silu_linear import SiluLinear
from model.moe.experts import ExpertStack

Dtype: TypeAlias = Literal["fp32", "bf16", "int8"]
# The largest byte of either sign.
LARGEST = 127
# Rows and weights of zeros alone have no scale.
LEAST_SCALE = 1e-12
# Layers that stay fp32: those that write logits, the transducer, whose layers are small, the projection of relative
# positions, which are computed in the type of its weights, and mixing coefficients of two values.
LOGITS = ("ctc", "decoder.output", "reverse_decoder.output")
KEPT_WHOLE = "transducer."
KEPT_NAMES = ("position", "coefficients")


def set_dtype(model: FinishedModel, dtype: Dtype) -> None:
    """Let a model compute with such numbers from now on. ConfigError where its device does not."""
    if dtype == "fp32":
        return
    if model.device.type != "cpu":
        raise ConfigError(
            f"--dtype {dtype} is for processors, and the model computes on {model.device}. Leave it out, or compute on "
            "the processors with --device cpu."
        )
    recognizer = model.recognizer
    for name, module in list(recognizer.named_modules()):
        place, _, last = name.rpartition(".")
        is_kept = name in LOGITS or name.startswith(KEPT_WHOLE) or last in KEPT_NAMES
        if is_kept or not isinstance(module, nn.Linear | ExpertStack):
            continue
        if dtype == "bf16":
            module.to(torch.bfloat16)
        elif isinstance(module, ExpertStack):
            setattr(recognizer.get_submodule(place), last, Int8Experts(module))
        else:
            setattr(recognizer.get_submodule(place), last, Int8Linear(module))
    if dtype == "bf16":
        model.autocast_dtype = torch.bfloat16


class Int8Linear(nn.Module):
    """A linear layer with weights of int8: [..., D] to [..., F], after SiLU where the layer has it."""

    weight_FD: Tensor
    scale_F: Tensor
    bias_F: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight_FD, scale_F = quantise_rows(linear.weight.detach())
        self.register_buffer("weight_FD", weight_FD)
        self.register_buffer("scale_F", scale_F.squeeze(1))
        bias_F = torch.zeros(linear.out_features)
        if linear.bias is not None:
            bias_F = linear.bias.detach()
        self.register_buffer("bias_F", bias_F)
        self.activates = isinstance(linear, SiluLinear)

    def forward(self, x: Tensor) -> Tensor:
        if self.activates:
            x = functional.silu(x)
        rows_RD = x.flatten(0, -2)
        output_RF = int8_linear(rows_RD, self.weight_FD, self.scale_F, self.bias_F)
        return output_RF.view(*x.shape[:-1], -1)


class Int8Experts(nn.Module):
    """An `ExpertStack` with weights of int8."""

    def __init__(self, experts: ExpertStack):
        super().__init__()
        self.hidden = experts.hidden
        width = experts.w1.shape[2]
        self.layers = nn.ModuleList()
        for expert in range(len(experts.w1)):
            biases = experts.w3[expert, 0].detach()
            expand = nn.Linear(width, self.hidden)
            contract = SiluLinear(self.hidden, width)
            expand.weight.data = experts.w1[expert].detach()
            expand.bias.data = biases[: self.hidden]
            contract.weight.data = experts.w2[expert].detach()
            contract.bias.data = biases[self.hidden :]
            self.layers.append(nn.Sequential(Int8Linear(expand), Int8Linear(contract)))

    def forward(self, x_MD: Tensor, counts_E: Tensor) -> Tensor:
        """As `ExpertStack.forward`, of a finished model, which drops no choice."""
        outputs = []
        for layer, rows_RD in zip(self.layers, x_MD.split(counts_E.tolist()), strict=True):
            if len(rows_RD):
                outputs.append(layer(rows_RD))
        if not outputs:
            return x_MD
        return torch.cat(outputs)


def quantise_rows(x_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes int8 [R, D] and the scale [R, 1] of each row, by which they are to be multiplied."""
    scale_R1 = x_RD.abs().amax(1, keepdim=True).clamp_min(LEAST_SCALE * LARGEST) / LARGEST
    return (x_RD / scale_R1).round_().to(torch.int8), scale_R1


def int8_linear(x_RD: Tensor, weight_FD: Tensor, scale_F: Tensor, bias_F: Tensor) -> Tensor:
    """x W^T + b in fp32, from products of bytes that are added up in int32."""
    bytes_RD, scale_R1 = quantise_rows(x_RD)
    # The product of torch's public operators for int8 falls back to a loop where it is given rows of changing number
    # (onednn.qlinear_pointwise, torch 2.14); this one is what torchao stands on.
    sums_RF = torch.ops.aten._int_mm(bytes_RD, weight_FD.t())
    output_RF = sums_RF * scale_R1
    return torch.addcmul(bias_F, output_RF, scale_F, out=output_RF)
