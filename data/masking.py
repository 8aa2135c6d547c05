"""Masked spans of features for masked prediction, and the noise that replaces them (Chiu et al., BEST-RQ, 2022).

A span may start at every frame and covers a fixed time. Spans may overlap, and end with their utterance at the latest.
Which frames are masked follows from (seed, step, lane) and the lengths of the utterances alone, so that any process can
count them for every lane before any audio is read.

Shapes: B batch, T feature frames, S encoder frames, K feature frames per encoder frame, F mel bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn import functional

from data.features import FeaturesConfig
from data.sampling.mixture import MixtureSampler
from data.sampling.sampler import BatchSampler
from data.seeds import derive_seed


class MaskingConfig(BaseModel, frozen=True, extra="forbid"):
    """Which feature frames are masked in stages that learn without transcripts."""

    # The defaults are BEST-RQ's: a third of the frames of a long utterance are masked.
    start_probability: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="share of the feature frames at which a masked span starts",
    )
    span_s: float = Field(default=0.4, gt=0, le=600, description="length of a masked span, in seconds")
    noise: float = Field(
        default=0.1,
        ge=0,
        le=1000,
        description="standard deviation of the noise in place of masked features, whose own is 1",
    )


class Masking:
    """Draws masks and noise for the micro-batches of a sampler.

    `factor` feature frames make one encoder frame. ValueError when a span is shorter than that: no encoder frame would
    ever be masked as a whole.
    """

    def __init__(
        self,
        config: MaskingConfig,
        features: FeaturesConfig,
        factor: int,
        seed: int,
    ):
        self.config = config
        self.features = features
        self.factor = factor
        self.seed = seed
        self.span_frames = span_frames(config, features)
        if self.span_frames < factor:
            raise ValueError(
                f"masking.span_s is {config.span_s:g}, {self.span_frames} feature frames, and {factor} of them make an "
                f"encoder frame: choose at least {factor * features.hop_ms / 1000:g}"
            )

    def frames(self, step: int, lane: int, lengths: Sequence[int]) -> Tensor:
        """Which feature frames of a lane's utterances are masked: bool [B, T], none beyond a length. On the CPU."""
        lengths_B = torch.tensor(lengths, dtype=torch.int64)
        positions_T = torch.arange(max(lengths, default=0))
        valid_BT = positions_T < lengths_B[:, None]

        # Only valid frames draw, one utterance after the other: padding does not change what is masked.
        seed = derive_seed(self.seed, "mask", step, lane)
        generator = torch.Generator().manual_seed(seed)
        num_draws = int(lengths_B.sum())
        draws = torch.rand(num_draws, generator=generator, dtype=torch.float64)
        starts_BT = torch.zeros(valid_BT.shape, dtype=torch.int64)
        starts_BT[valid_BT] = (draws < self.config.start_probability).long()

        # A frame lies in a span when more spans started up to it than up to `span_frames` frames before it.
        num_starts_BT = starts_BT.cumsum(1)
        padded = functional.pad(num_starts_BT, (self.span_frames, 0))
        earlier_BT = padded[:, : len(positions_T)]
        return (num_starts_BT > earlier_BT) & valid_BT

    def noise(self, step: int, lane: int, shape: Sequence[int]) -> Tensor:
        """What takes the place of masked features: fp32 of a shape [B, T, F]. On the CPU, whatever computes with it."""
        seed = derive_seed(self.seed, "mask noise", step, lane)
        generator = torch.Generator().manual_seed(seed)
        return self.config.noise * torch.randn(*shape, generator=generator)

    def apply_mask(
        self,
        features_BTF: Tensor,
        lengths_B: Tensor,
        step: int,
        lane: int,
    ) -> tuple[Tensor, Tensor]:
        """Features of a lane with noise in masked spans, and which frames are masked: bool [B, T]. On their device."""
        device = features_BTF.device
        masked_BT = self.frames(step, lane, lengths_B.tolist())
        # A batch may be padded beyond its longest utterance.
        padding = features_BTF.shape[1] - masked_BT.shape[1]
        masked_BT = functional.pad(masked_BT, (0, padding)).to(device)
        noise_BTF = self.noise(step, lane, features_BTF.shape).to(device)
        return torch.where(masked_BT[:, :, None], noise_BTF, features_BTF), masked_BT

    def count(self, sampler: BatchSampler | MixtureSampler, step: int) -> int:
        """Masked encoder frames of a step over all lanes. Utterances that turn out broken stay counted."""
        total = 0
        for lane in range(sampler.batches.lanes):
            batch = sampler.micro_batch(step, lane)
            lengths = self.features.num_frames(batch.samples)
            masked_BT = self.frames(step, lane, lengths.tolist())
            masked_BS = fully_masked_frames(masked_BT, torch.from_numpy(lengths), self.factor)
            total += int(masked_BS.sum())
        return total


def fully_masked_frames(masked_BT: Tensor, lengths_B: Tensor, factor: int) -> Tensor:
    """The encoder frames of which every valid feature frame is masked: bool [B, S], on the device of the mask."""
    batch, num_frames = masked_BT.shape
    positions_T = torch.arange(num_frames, device=masked_BT.device)
    valid_BT = positions_T < lengths_B[:, None]
    visible_BT = valid_BT & ~masked_BT

    # The last encoder frame may have fewer than `factor` feature frames; those that lack are neither.
    padding = (0, -num_frames % factor)
    # No -1 in the shape: an empty lane has no elements to infer it from.
    grouped_shape = (batch, math.ceil(num_frames / factor), factor)
    visible_BSK = functional.pad(visible_BT, padding).view(grouped_shape)
    masked_BSK = functional.pad(masked_BT, padding).view(grouped_shape)
    any_visible_BS = visible_BSK.any(-1)
    any_masked_BS = masked_BSK.any(-1)
    return any_masked_BS & ~any_visible_BS


def span_frames(config: MaskingConfig, features: FeaturesConfig) -> int:
    """Feature frames of a masked span."""
    return max(1, round(config.span_s * 1000 / features.hop_ms))


def masked_share(config: MaskingConfig, features: FeaturesConfig) -> float:
    """The share of a long utterance's feature frames that are masked, on average."""
    # A frame is visible when none of the span_frames spans that would cover it starts.
    return 1 - (1 - config.start_probability) ** span_frames(config, features)
