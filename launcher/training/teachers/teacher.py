"""What every teacher gives, be it one of Chorus or not.

Shapes: B batch, S teacher frames, D the teacher's width, U tokens, V vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from launcher.training.feature_batch import FeatureBatch


class Layers(Protocol):
    """The output [B, S, D] of every layer, by its number."""

    def __len__(self) -> int: ...

    def __getitem__(self, layer: int, /) -> Tensor: ...


@dataclass
class TeacherOutput:
    """A teacher's hidden states and, over the student's tokens, its logits.

    layers: hidden states, zero at frames that are not valid. lengths_B: valid frames. ctc_BSV, decoder_BUV: logits;
    none where the teacher has no such output or other tokens.
    """

    layers: Layers
    lengths_B: Tensor
    ctc_BSV: Tensor | None = None
    decoder_BUV: Tensor | None = None


class Teacher(ABC):
    """A frozen model whose input is the student's: the same augmented features, unless it `needs_source`.

    frame_s: seconds from one of its frames to the next. same_tokens: whether its tokens are the student's.
    """

    frame_s: float
    same_tokens: bool = False
    has_decoder: bool = False
    needs_source: bool = False

    @abstractmethod
    def __call__(self, batch: FeatureBatch) -> TeacherOutput:
        """The teacher's forward pass on a micro-batch, without gradient."""


def run_teacher(teacher: Teacher, batch: FeatureBatch, autocast: bool) -> TeacherOutput:
    """A teacher's forward pass on a batch, in bf16 with `autocast`, else at the precision of its weights."""
    # The engine's autocast covers its own model alone, and a teacher runs outside of it.
    device = batch.features_BTF.device.type
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=autocast):
        return teacher(batch)
