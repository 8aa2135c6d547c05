"""Levels: utterances louder and softer, and cut off where a recorder was overdriven."""

from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field

from data.augmentation.convolution import Waveform
from data.augmentation.ranges import Range, within


class VolumeConfig(BaseModel, frozen=True, extra="forbid"):
    """Utterances that are louder or softer."""

    probability: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of the utterances whose volume is changed",
    )
    gain_db: Annotated[Range, within(-60.0, 40.0)] = Field(
        default=(-12.0, 6.0),
        description="range of the gain, in decibels",
    )


class ClippingConfig(BaseModel, frozen=True, extra="forbid"):
    """Utterances whose loudest samples are cut off."""

    probability: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of the utterances that are clipped",
    )
    level: Annotated[Range, within(0.01, 1.0)] = Field(
        default=(0.3, 0.9),
        description="range of the level at which samples are cut off, as a share of the peak",
    )


def change_volume(waveform: Waveform, gain_db: float) -> Waveform:
    """The waveform with every sample multiplied by a gain; nothing is clipped."""
    return waveform * np.float32(10 ** (gain_db / 20))


def clip_peaks(waveform: Waveform, level: float) -> Waveform:
    """The waveform with samples beyond a share of its own peak set to that."""
    if len(waveform) == 0:
        return waveform
    limit = np.float32(level) * np.abs(waveform).max()
    return np.clip(waveform, -limit, limit)
