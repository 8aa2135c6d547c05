"""A running average of the weights: at every update it moves towards them by a share (Polyak and Juditsky, 1992).

Each process averages the intervals of fp32 weights that it owns (fragments.py), so that the average is sharded as the
optimizer's moments are, travels in checkpoints beside them, and goes on under any topology. What is computed of a value
is computed of it alone, by operations that are rounded once each: where the weights are equal to the bit, so is their
average, however it is cut.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from launcher.training.checkpoint import AVERAGE
from launcher.training.fragments import Fragment, owned_fragments
from launcher.training.parallel import Engine


class RunningAverage:
    """The average of the weights of an engine, and of the buffers that are part of its model's state.

    It begins as the weights at hand. Build it after the engine, before its first update.
    """

    def __init__(self, engine: Engine, decay: float):
        self._engine = engine
        self._decay = decay
        # By the name of a parameter and where this process's interval of it begins.
        self._averages: dict[tuple[str, int], Tensor] = {}
        for fragment in owned_fragments(engine):
            self._averages[fragment.name, fragment.start] = fragment.values.detach().clone()
        self.buffers: dict[str, Tensor] = {}
        for name, buffer in state_buffers(engine.module):
            self.buffers[name] = buffer.detach().clone()

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Take in the weights after so many updates, the newest included."""
        # What the weights were drawn as would be a part of the average for long: the first updates count for more, as
        # in TensorFlow's ExponentialMovingAverage.
        decay = min(self._decay, (1 + num_updates) / (10 + num_updates))
        for fragment in owned_fragments(self._engine):
            _move(self._averages[fragment.name, fragment.start], fragment.values, 1 - decay)
        for name, buffer in state_buffers(self._engine.module):
            _move(self.buffers[name], buffer, 1 - decay)

    def fragments(self) -> Iterator[Fragment]:
        """What this process owns, with the average beside the moments."""
        for fragment in owned_fragments(self._engine):
            average = self._averages[fragment.name, fragment.start]
            yield replace(fragment, state={**fragment.state, AVERAGE: average})


def _move(average: Tensor, values: Tensor, share: float) -> None:
    # Not lerp: its vector code may be rounded otherwise than the code for what is left over at the end of an interval,
    # and where that is depends on the topology.
    difference = values.detach() - average
    average.add_(difference.mul_(share))


def state_buffers(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that are part of a model's state, such as the routers' biases and BatchNorm's statistics."""
    persistent = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name in persistent:
            yield name, buffer
