"""Time warp of features: the first part of an utterance is stretched and the rest squeezed, or the other way round.

Shapes: B batch, T frames, F mel bins.
"""

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from data.features import FeaturesConfig


class TimeWarpConfig(BaseModel, frozen=True, extra="forbid"):
    """Features that are warped along time, without a change of their length."""

    probability: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the utterances whose features are warped",
    )
    # W of SpecAugment: 80 frames of 10 ms there.
    width_s: float = Field(
        default=0.8,
        gt=0,
        le=60,
        description="how far a point in time is moved at most, in seconds; W of SpecAugment",
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

    # -1: frames are counted from 0. The moves are -(W - 1) to W - 1, all alike.
    last_B = (lengths_B - 1).clamp(min=1)
    room_B = lengths_B - 2 * width_frames
    centers_B = width_frames + (draws_B3[:, 1] * room_B).floor()
    num_moves = 2 * width_frames - 1
    moves_B = (draws_B3[:, 2] * num_moves).floor() - (width_frames - 1)
    moved_B = centers_B + moves_B

    # Where the features of each frame come from: two straight lines in time that meet at the moved centre.
    frames_T = torch.arange(num_frames, device=device, dtype=torch.float64)
    slope_before_B = centers_B / moved_B
    slope_after_B = (last_B - centers_B) / (last_B - moved_B)
    past_centre_BT = frames_T - moved_B[:, None]
    slope_BT = torch.where(past_centre_BT <= 0, slope_before_B[:, None], slope_after_B[:, None])
    # Rounding can bring the first frame to just before the beginning.
    sources_BT = (centers_B[:, None] + past_centre_BT * slope_BT).clamp(min=0)
    # Frames beyond the end, and utterances that are not warped, come from where they are.
    beyond_BT = frames_T >= lengths_B[:, None]
    stays_BT = beyond_BT | ~warped_B[:, None]
    sources_BT = torch.where(stays_BT, frames_T, sources_BT)

    last_frame = max(num_frames - 1, 0)
    left_BT = sources_BT.floor().long().clamp(0, last_frame)
    right_BT = (left_BT + 1).clamp(max=last_frame)
    shares_BT = (sources_BT - left_BT).to(features_BTF.dtype)
    left_BTF = features_BTF.gather(1, left_BT[:, :, None].expand(-1, -1, num_bins))
    right_BTF = features_BTF.gather(1, right_BT[:, :, None].expand(-1, -1, num_bins))
    warped_BTF = torch.lerp(left_BTF, right_BTF, shares_BT[:, :, None])
    return torch.where(stays_BT[:, :, None], features_BTF, warped_BTF)
