"""Effects that work at a sample rate of their own, without a change of length."""

from collections.abc import Callable

import numpy as np
import soxr

from data.augmentation.convolution import Waveform


def at_rate(
    waveform: Waveform,
    rate_hz: int,
    effect_hz: int,
    effect: Callable[[Waveform], Waveform],
) -> Waveform:
    """What an effect that works at `effect_hz` makes of a waveform at `rate_hz`, at that rate and as long: float32 [S].

    The resampler has no delay: what was said stays where it was. What lies above half of the lower rate is lost.
    """
    if effect_hz == rate_hz:
        return fit_length(effect(waveform), len(waveform))
    resampled = soxr.resample(waveform, rate_hz, effect_hz, quality="HQ")
    changed = soxr.resample(effect(resampled), effect_hz, rate_hz, quality="HQ")
    return fit_length(changed, len(waveform))


def fit_length(waveform: Waveform, length: int) -> Waveform:
    """The waveform cut off, or with silence behind it: float32 [length]."""
    if len(waveform) < length:
        waveform = np.pad(waveform, (0, length - len(waveform)))
    return waveform[:length].astype(np.float32, copy=False)
