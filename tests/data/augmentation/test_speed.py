"""Speed perturbation of waveforms."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.augmentation import AugmentConfig, change_speed


def tone(hertz, seconds, rate_hz=16000):
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate_hz)) / rate_hz).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20000), st.floats(0.5, 2.0))
def test_a_changed_waveform_has_exactly_the_length_that_the_sampler_says(samples, speed):
    length = round(samples / speed)
    changed = change_speed(np.ones(samples, np.float32), speed, length)
    assert changed.shape == (length,)
    assert changed.dtype == np.float32


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_raises_the_pitch_and_keeps_the_loudness(speed):
    changed = change_speed(tone(1000, 1.0), speed, round(16000 / speed))
    spectrum = np.abs(np.fft.rfft(changed * np.hanning(len(changed))))
    peak_hz = spectrum.argmax() * 16000 / len(changed)
    assert peak_hz == pytest.approx(1000 * speed, abs=1.5)
    # Away from the ends, where the resampler's filter sees silence.
    assert np.abs(changed[200:-200]).max() == pytest.approx(1.0, abs=0.01)


def test_speed_one_leaves_every_sample_as_it_is():
    waveform = tone(440, 0.1)
    assert np.array_equal(change_speed(waveform, 1.0, len(waveform)), waveform)


def test_changing_ten_seconds_takes_a_few_milliseconds():
    waveform = tone(440, 10)
    took_s = []
    for _ in range(5):
        began = time.process_time()
        change_speed(waveform, 0.9, round(160000 / 0.9))
        took_s.append(time.process_time() - began)
    # Measured 2 ms on one core; the bar leaves room for a busy machine.
    assert min(took_s) < 0.01


def test_speeds_that_are_no_speech_are_refused():
    with pytest.raises(ValueError, match=r"between 0\.5 and 2\.0"):
        AugmentConfig(speeds=(1.0, 3.0))
