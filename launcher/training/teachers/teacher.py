"""What every teacher gives, be it one of Chorus or not.

Shapes: B batch, S teacher frames, D the teacher's width, U tokens, V vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from launcher.training.feature_batch import FeatureBatch


class Layers(Protocol):
    """The output [B, S, D] of every layer, by its number."""

    def __len__(self) -> int: ...

    def __getitem__(self, layer: int, /) -> Tensor: ...


@dataclass
class TeacherOutput:
    """layers its hidden states, zero at frames that are not valid; lengths_B its valid frames; ctc_BSV and decoder_BUV
    logits over the student's tokens, none where it has no such output or other tokens."""

    layers: Layers
    lengths_B: Tensor
    ctc_BSV: Tensor | None = None
    decoder_BUV: Tensor | None = None


class Teacher(ABC):
    """A frozen model that hears what the student hears: the same augmented features, unless it `needs_source`.

    frame_s is the time from one of its frames to the next; same_tokens says whether its tokens are the student's.
    """

    frame_s: float
    same_tokens: bool = False
    has_decoder: bool = False
    needs_source: bool = False

    @abstractmethod
    def __call__(self, batch: FeatureBatch) -> TeacherOutput:
        """What the teacher makes of a micro-batch; without gradient."""
