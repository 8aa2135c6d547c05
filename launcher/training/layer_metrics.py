"""What each layer does to the frames, measured at the steps that are logged (`log_layers`).

It shows a training that is stuck: a layer whose output is its input (cosine 1) or has nothing to do with it, layers
that no gradient reaches, frames that all look alike (an effective rank near 1).

Shapes: N packed valid frames of a lane, D model width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from launcher.training.metrics import StepMetrics
from model.encoder import EncoderOutput

PREFIX = "layers/"
# Gradients of lanes are added up as squares.
SQUARE = "/squared_gradient"


class LayerProbe:
    """One lane's measures of a step. Make it before the backward pass, which it waits for with hooks."""

    def __init__(self, output: EncoderOutput, num_frames: int):
        """`num_frames`: those of the whole step, over all lanes, which make sums means."""
        self.num_frames = max(num_frames, 1)
        self.metrics: StepMetrics = {}
        previous_ND = output.input_ND.detach()
        for layer in range(len(output.layers)):
            name = f"{PREFIX}layer-{layer:02d}"
            frames_ND = output.layers.packed(layer)
            self._watch_gradient(name + SQUARE, frames_ND)
            frames_ND = frames_ND.detach()
            cosine_N = functional.cosine_similarity(previous_ND.float(), frames_ND.float(), dim=-1)
            self.metrics[f"{name}/cosine"] = cosine_N.sum() / self.num_frames
            previous_ND = frames_ND
        share = len(previous_ND) / self.num_frames
        self.metrics[f"{PREFIX}rank"] = share * effective_rank(previous_ND)

    def _watch_gradient(self, name: str, frames_ND: Tensor) -> None:
        # A lane without frames, or a layer that nothing is learnt from, gets no gradient: it counts 0.
        self.metrics[name] = frames_ND.new_zeros((), dtype=torch.float32)

        def add(gradient_ND: Tensor) -> None:
            self.metrics[name] = self.metrics[name] + gradient_ND.float().square().sum()

        frames_ND.register_hook(add)


def effective_rank(frames_ND: Tensor) -> Tensor:
    """exp of the entropy of the shares of variance along the principal axes (Roy and Vetterli, 2007): 1 where frames
    differ in one direction alone, D where in all alike; 0 for fewer than two frames."""
    if len(frames_ND) < 2:
        return frames_ND.new_zeros(())
    centred_ND = frames_ND.float() - frames_ND.float().mean(0)
    # Rounding makes the smallest eigenvalues negative; frames that are all alike have no variance to share out.
    variance_D = torch.linalg.eigvalsh(centred_ND.t() @ centred_ND).clamp(min=0)
    share_D = variance_D / variance_D.sum().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.special.entr(share_D).sum().exp()


def layer_row(scalars: dict[str, float], num_processes: int) -> dict[str, float]:
    """Take the measures of a step, summed over all lanes, out of its scalars, as the columns of a row."""
    row = {}
    # A list, because names are taken out of the scalars on the way.
    for name in [name for name in scalars if name.startswith(PREFIX)]:
        value = scalars.pop(name)
        if name.endswith(SQUARE):
            # The engine averages over processes, so each of them computes gradients that many times too large.
            row[name.removesuffix(SQUARE) + "/gradient_norm"] = math.sqrt(value) / num_processes
        else:
            row[name] = value
    return row
