"""Speed perturbation of waveforms; the sampler draws the speeds."""

import numpy as np
import numpy.typing as npt
import soxr


def change_speed(waveform: npt.NDArray[np.float32], speed: float, length: int) -> npt.NDArray[np.float32]:
    """The waveform played `speed` times as fast (tempo and pitch), exactly `length` samples long.

    `length` is the sampler's round(samples / speed). The resampler's own rounding may differ from it by a
    sample, which is cut off or is silence.
    """
    changed = waveform
    if speed != 1.0:
        changed = soxr.resample(waveform, speed, 1.0, quality="HQ")
    assert abs(len(changed) - length) <= 2, f"{len(waveform)} samples at speed {speed} cannot become {length}"
    if len(changed) < length:
        changed = np.pad(changed, (0, length - len(changed)))
    return changed[:length].astype(np.float32, copy=False)
