"""Signals that augmentation is measured on, and measures of them."""

import numpy as np
import numpy.typing as npt

Waveform = npt.NDArray[np.float32]


def tone(hertz: float, seconds: float, rate_hz: int = 16000, amplitude: float = 0.5) -> Waveform:
    """A sine."""
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    return (amplitude * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def hiss(num_samples: int, seed: int = 0, amplitude: float = 0.1) -> Waveform:
    """White noise."""
    return (amplitude * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def syllables(seconds: float, rate_hz: int = 16000, seed: int = 0) -> Waveform:
    """Something like speech: bursts of a voice with formants and consonants, four a second, with pauses."""
    num_samples = round(seconds * rate_hz)
    times = np.arange(num_samples) / rate_hz
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * times + seed)
    phase = 2 * np.pi * np.cumsum(pitch) / rate_hz
    voice = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 25))
    breath = np.random.default_rng(seed).standard_normal(num_samples)
    envelope = np.clip(np.sin(2 * np.pi * 4 * times), 0, None)
    return (0.1 * envelope * (voice + 0.3 * breath)).astype(np.float32)


def shift_of(changed: Waveform, original: Waveform) -> int:
    """By how many samples something is later than the original, by the peak of their correlation."""
    size = 2 * max(len(changed), len(original))
    spectrum = np.fft.rfft(changed, size) * np.conj(np.fft.rfft(original, size))
    peak = int(np.fft.irfft(spectrum, size).argmax())
    if peak > size // 2:
        return peak - size
    return peak


def level_db(waveform: Waveform) -> float:
    """The mean power in decibels of full scale."""
    return float(10 * np.log10(np.mean(np.square(waveform, dtype=np.float64)) + 1e-20))


def band_db(waveform: Waveform, low_hz: float, high_hz: float, rate_hz: int = 16000) -> float:
    """The power between two frequencies, in decibels."""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)))) ** 2
    frequencies_hz = np.fft.rfftfreq(len(waveform), 1 / rate_hz)
    inside = (frequencies_hz >= low_hz) & (frequencies_hz < high_hz)
    return float(10 * np.log10(spectrum[inside].sum() + 1e-20))
