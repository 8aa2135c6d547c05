"""Waveforms, and their convolution with responses of any length, by the FFT."""

import numpy as np
import numpy.typing as npt

Waveform = npt.NDArray[np.float32]


def convolve(waveform: Waveform, response: Waveform, delay: int) -> Waveform:
    """The waveform [S] filtered by a response, without its first `delay` samples: float32 [S].

    With the delay that the response has itself, what was said stays where it was.
    """
    num_samples = len(waveform)
    size = _fft_size(num_samples + len(response) - 1)
    spectrum = np.fft.rfft(waveform, size) * np.fft.rfft(response, size)
    filtered = np.fft.irfft(spectrum, size)
    return filtered[delay : delay + num_samples].astype(np.float32, copy=False)


def _fft_size(num_samples: int) -> int:
    """The smallest size of 4 to 8 times a power of two that holds so many samples."""
    # Powers of two alone would take twice the time just above each of them. 7 is the largest factor, and a fast one.
    unit = 1
    while 8 * unit < num_samples:
        unit *= 2
    return -(-num_samples // unit) * unit
