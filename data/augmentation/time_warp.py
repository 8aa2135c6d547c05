"""Time warp of features: the first part of an utterance is stretched and the rest squeezed, or the other way round.

Shapes: B batch, T frames, F mel bins.
"""

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from data.features import FeaturesConfig


class TimeWarpConfig(BaseModel, frozen=True, extra="forbid"):
    """Features that are warped along time, without a change of their length."""

    probability: float = Field(default=0.5, ge=0, le=1, description="share of the utterances whose features are warped")
    # W of SpecAugment: 80 frames of 10 ms there.
    width_s: float = Field(
        default=0.8, gt=0, le=60, description="how far a point in time is moved at most, in seconds; W of SpecAugment"
    )


def warp_time(
    features_BTF: Tensor,
    lengths_B: Tensor,
    config: TimeWarpConfig,
    features: FeaturesConfig,
    generator: torch.Generator,
) -> Tensor:
    """Features [B, T, F] warped within their `lengths_B` valid frames (Park et al., 2019, section 2).

    A frame at least W from both ends is moved by up to W frames, and what lies on either side is interpolated linearly.
    Utterances of 2 W frames or fewer stay as they are. `generator` must live on the CPU: the draws are the same
    whatever device holds the features.
    """
    width_frames = max(1, round(config.width_s * 1000 / features.hop_ms))
    batch, num_frames, num_bins = features_BTF.shape
    device = features_BTF.device
    # Three draws for every utterance, whatever becomes of them, so that none moves those of the next.
    draws_B3 = torch.rand(batch, 3, generator=generator, dtype=torch.float64).to(device)
    warped_B = (draws_B3[:, 0] < config.probability) & (lengths_B > 2 * width_frames)

    # From the centre to its new place; -1, as frames are counted from 0.
    last_B = (lengths_B - 1).clamp(min=1)
    centers_B = width_frames + (draws_B3[:, 1] * (lengths_B - 2 * width_frames)).floor()
    moves_B = (draws_B3[:, 2] * (2 * width_frames - 1)).floor() - (width_frames - 1)
    moved_B = centers_B + moves_B

    frames_T = torch.arange(num_frames, device=device, dtype=torch.float64)
    before_BT = frames_T * (centers_B / moved_B)[:, None]
    slope_B = (last_B - centers_B) / (last_B - moved_B)
    after_BT = centers_B[:, None] + (frames_T - moved_B[:, None]) * slope_B[:, None]
    sources_BT = torch.where(frames_T <= moved_B[:, None], before_BT, after_BT)
    # Frames beyond the end, and utterances that are not warped, come from where they are.
    stays_BT = ~warped_B[:, None] | (frames_T >= lengths_B[:, None])
    sources_BT = torch.where(stays_BT, frames_T, sources_BT)

    left_BT = sources_BT.floor().long().clamp(0, max(num_frames - 1, 0))
    right_BT = (left_BT + 1).clamp(max=max(num_frames - 1, 0))
    share_BT1 = (sources_BT - left_BT)[:, :, None].to(features_BTF.dtype)
    left_BTF = features_BTF.gather(1, left_BT[:, :, None].expand(-1, -1, num_bins))
    right_BTF = features_BTF.gather(1, right_BT[:, :, None].expand(-1, -1, num_bins))
    warped_BTF = torch.lerp(left_BTF, right_BTF, share_BT1)
    return torch.where(stays_BT[:, :, None], features_BTF, warped_BTF)
