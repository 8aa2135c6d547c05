"""How large a model is, in the three ways that matter when blocks are shared and experts idle.

unique: each tensor once, what is stored and updated. effective: what a model without sharing, of the same depth and
with the same experts, would hold. activated: what one frame multiplies with on its way, each use counted.
"""

from collections import Counter
from dataclasses import asdict, dataclass

from torch import nn

from model.block import LayerParameters
from model.encoder import Encoder
from model.experts import MixtureOfExperts
from model.recognizer import Recognizer
from model.router import Router


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of the whole model (unique) and of its encoder (unique, effective, activated per frame)."""

    parameters: int
    encoder_parameters: int
    effective_encoder_parameters: int
    activated_encoder_parameters: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def count_parameters(recognizer: Recognizer) -> ParameterCounts:
    """Count a model, which may live on the meta device."""
    encoder = recognizer.encoder
    return ParameterCounts(
        parameters=_unique(recognizer),
        encoder_parameters=_unique(encoder),
        effective_encoder_parameters=_per_use(encoder, idle_experts=True),
        activated_encoder_parameters=_per_use(encoder, idle_experts=False),
    )


def _unique(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _per_use(encoder: Encoder, idle_experts: bool) -> int:
    uses = [encoder.blocks[block] for block in encoder.config.block_of_layer]
    once = _unique(encoder) - _unique(encoder.blocks) + _shared_norms_and_routers(encoder)
    if idle_experts:
        return once + sum(_unique(block) for block in uses)
    per_frame = encoder.config.experts.router.per_frame if encoder.config.experts else 0
    return once + sum(_activated(block, per_frame) for block in uses)


def _shared_norms_and_routers(encoder: Encoder) -> int:
    """What norms and routers that several layers share count beyond the first use."""
    layers = [layer for layer in encoder.layers if isinstance(layer, LayerParameters)]
    uses = Counter(module for layer in layers for module in (*layer.norms().values(), *layer.routers()))
    # Of a router's embeddings every layer uses its own, so that all are used once.
    return sum(
        (number - 1) * (module.weight.numel() if isinstance(module, Router) else _unique(module))
        for module, number in uses.items()
    )


def _activated(block: nn.Module, per_frame: int) -> int:
    total = _unique(block)
    for module in block.modules():
        if isinstance(module, MixtureOfExperts):
            experts = _unique(module)
            total -= experts - experts // module.num_experts * per_frame
    return total
