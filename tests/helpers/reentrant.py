"""The step of gradients.py with reentrant activation checkpointing: `reentrant.py OUT EXPERT_PARALLEL DEEPSPEED`.

Reentrant checkpointing hands on only tensors, and so loses the gradient of what a routing says about balance. The
balance losses are off here, so that what remains is how DeepSpeed counts the gradients of shared blocks.
"""

import sys
from pathlib import Path

import gradients
from torch.utils.checkpoint import checkpoint

import model.encoder
from model.block import LayerOutput
from model.losses import ObjectiveConfig


def configure() -> None:
    """Let gradients.py build the model with activation checkpointing and without balance losses."""
    encoder = gradients.CONFIG.encoder.model_copy(update={"activation_checkpointing": True})
    gradients.CONFIG = gradients.CONFIG.model_copy(update={"encoder": encoder})
    gradients.OBJECTIVE = ObjectiveConfig(balance_weight=0.0, z_weight=0.0)


def reentrant(*arguments, use_reentrant: bool) -> LayerOutput:
    """It hands on what a layer gives as a plain tuple."""
    return LayerOutput(*checkpoint(*arguments, use_reentrant=not use_reentrant))


if __name__ == "__main__":
    configure()
    model.encoder.checkpoint = reentrant
    gradients.main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
