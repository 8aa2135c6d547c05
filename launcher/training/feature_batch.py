"""What the model of a stage computes a loss from: one lane's features, tokens, and what they were made from.

Shapes: B batch, T feature frames, F mel bins, U tokens, S samples.
"""

from dataclasses import dataclass, field

from torch import Tensor

from data.shards.sidecars import Arrays


@dataclass
class CleanInputs:
    """What augmented features were made from: features without masks, the frames that masks hide as a whole (bool), and
    the waveforms with their lengths in samples."""

    features_BTF: Tensor
    masked_BT: Tensor
    waveforms_BS: Tensor
    samples_B: Tensor


@dataclass
class FeatureBatch:
    """Augmented or masked features of one lane on the device. An empty lane is one utterance of no frames and no
    tokens.

    `source` is there where a loss or a teacher asks for it. `sidecars` holds the stored outputs for each utterance, by
    the names of teachers that are read from a cache.
    """

    features_BTF: Tensor
    lengths_B: Tensor
    tokens_BU: Tensor
    token_lengths_B: Tensor
    source: CleanInputs | None = None
    sidecars: dict[str, list[Arrays]] = field(default_factory=dict)
