"""SpecAugment: bands of mel bins and of time are masked.

The draws come from a generator that the caller has seeded, so that an utterance is masked the same way whichever
process or device does it.

Shapes: B batch, T frames, F mel bins, M masks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.augmentation.config import AugmentConfig
from data.features import FeaturesConfig


class SpecAugment(nn.Module):
    """Sets random bands of mel bins and of time to the mean of the features, zero (Park et al., 2019)."""

    def __init__(self, config: AugmentConfig, features: FeaturesConfig):
        super().__init__()
        self.config = config
        # In seconds in the configuration, so that another hop masks as much speech.
        self.time_width_frames = round(config.time_width_s * 1000 / features.hop_ms)

    def forward(
        self,
        features_BTF: Tensor,
        lengths_B: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Masked copy of features [B, T, F] of `lengths_B` valid frames; time masks lie within these.

        `generator` must live on the CPU: the draws are the same whatever device holds the features.
        """
        masked_BF, masked_BT = self.masks(features_BTF, lengths_B, generator)
        return apply_mask(features_BTF, masked_BF, masked_BT)

    def masks(
        self,
        features_BTF: Tensor,
        lengths_B: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Where `forward` masks: bool over mel bins [B, F] and over frames [B, T]."""
        config = self.config
        batch, frames, bins = features_BTF.shape
        device = features_BTF.device
        # Two draws per mask, one for its width and one for its start. On the CPU, for the same masks on every device.
        num_masks = config.frequency_masks + config.time_masks
        draws = torch.rand(batch, 2, num_masks, generator=generator, dtype=torch.float64)
        draws = draws.to(device)
        frequency_draws = draws[:, :, : config.frequency_masks]
        time_draws = draws[:, :, config.frequency_masks :]

        bins_B1 = torch.full((batch, 1), bins, device=device)
        frequency_widths_B1 = bins_B1.clamp(max=config.frequency_width_bins)
        masked_BF = _masked(frequency_draws, frequency_widths_B1, bins_B1, bins)

        lengths_B1 = lengths_B[:, None]
        shares_B1 = (lengths_B1 * config.time_ratio).long()
        time_widths_B1 = shares_B1.clamp(max=self.time_width_frames)
        masked_BT = _masked(time_draws, time_widths_B1, lengths_B1, frames)
        return masked_BF, masked_BT


def apply_mask(features_BTF: Tensor, masked_BF: Tensor, masked_BT: Tensor) -> Tensor:
    """A copy of features [B, T, F] with masked mel bins and frames set to zero."""
    masked_BTF = masked_BF[:, None, :] | masked_BT[:, :, None]
    return features_BTF.masked_fill(masked_BTF, 0.0)


def _masked(
    draws: Tensor,
    max_width_B1: Tensor,
    extent_B1: Tensor,
    size: int,
) -> Tensor:
    """Where [B, size] a mask lies, from uniform draws [B, 2, M] of a width up to `max_width_B1` and a start."""
    # + 1, as the draws are below 1: widths from 0 to the largest, and every start that keeps a mask inside.
    widths_BM = (draws[:, 0] * (max_width_B1 + 1)).long()
    starts_BM = (draws[:, 1] * (extent_B1 - widths_BM + 1)).long()
    stops_BM = starts_BM + widths_BM
    positions = torch.arange(size, device=draws.device)
    after_start = positions >= starts_BM[..., None]
    before_stop = positions < stops_BM[..., None]
    return (after_start & before_stop).any(dim=1)
