"""Noise at a signal-to-noise ratio: recordings of noise, or babble of several voices."""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field

from data.augmentation.convolution import Waveform
from data.augmentation.ranges import Range, within

# Ends of every ratio: below, speech is lost in the noise; above, the noise is below the rounding of 16 bits.
LOWEST_SNR_DB = -30.0
HIGHEST_SNR_DB = 90.0


class NoiseConfig(BaseModel, frozen=True, extra="forbid"):
    """Recordings of noise that are added to utterances."""

    probability: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the utterances that get noise",
    )
    snr_db: Annotated[Range, within(LOWEST_SNR_DB, HIGHEST_SNR_DB)] = Field(
        default=(5.0, 25.0),
        description="range of the power of speech over that of noise, in decibels",
    )
    recordings: str = Field(
        description="shards of noise (a split's folder or URL), at the rate of the features, or a folder of audio files"
    )


class BabbleConfig(BaseModel, frozen=True, extra="forbid"):
    """Other utterances, several at a time, that are added as voices in the background."""

    probability: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="share of the utterances that get babble",
    )
    snr_db: Annotated[Range, within(LOWEST_SNR_DB, HIGHEST_SNR_DB)] = Field(
        default=(10.0, 25.0),
        description="range of the power of speech over that of all voices, in decibels",
    )
    voices: Annotated[tuple[int, int], within(1, 32)] = Field(
        default=(3, 7),
        description="range of the number of utterances that talk at once",
    )
    recordings: str | None = Field(
        default=None,
        description="shards or a folder of audio files, as for noise; none: the split that is trained on",
    )


def power(waveform: Waveform) -> float:
    """The mean square of a waveform; 0 without samples."""
    if len(waveform) == 0:
        return 0.0
    # In float64: the sum of an hour of squares has 24 bits to lose in float32.
    return float(np.mean(np.square(waveform, dtype=np.float64)))


def add_noise(speech: Waveform, noise: Waveform, snr_db: float) -> Waveform:
    """Speech with noise of the same length [S], scaled so that powers over all samples have this ratio.

    The speech keeps its level. Silence, which has no ratio to anything, stays as it is, and so does speech to which
    silence would be added.
    """
    speech_power = power(speech)
    noise_power = power(noise)
    if speech_power == 0 or noise_power == 0:
        return speech
    scale = math.sqrt(speech_power / noise_power) * 10 ** (-snr_db / 20)
    return (speech + np.float32(scale) * noise).astype(np.float32, copy=False)


def mix_voices(voices: Sequence[Waveform]) -> Waveform:
    """Several waveforms of the same length, each of them equally loud: float32 [S]."""
    mixture = np.zeros_like(voices[0])
    for voice in voices:
        voice_power = power(voice)
        if voice_power > 0:
            mixture += voice * np.float32(1 / math.sqrt(voice_power))
    return mixture


def cut_or_repeat(waveform: Waveform, start: int, num_samples: int) -> Waveform:
    """So many samples from `start` on, from the beginning again where the waveform ends: float32 [num_samples]."""
    positions = np.arange(start, start + num_samples)
    return np.take(waveform, positions, mode="wrap")
