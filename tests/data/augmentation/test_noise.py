"""Noise and babble: the ratio that was asked for is the one that is measured."""

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from signals import hiss, level_db, syllables

from data.augmentation.noise import add_noise, cut_or_repeat, mix_voices, power


@settings(max_examples=40, deadline=None)
@given(
    snr_db=st.floats(-30, 90),
    speech_db=st.floats(-60, 0),
    noise_db=st.floats(-60, 0),
    num_samples=st.integers(1, 40_000),
)
def test_the_measured_ratio_is_the_one_that_was_drawn(snr_db, speech_db, noise_db, num_samples):
    """power(speech) / power(noisy - speech) == 10^(snr / 10), within 0.1 dB where fp32 holds the noise."""
    speech = hiss(num_samples, seed=1) * np.float32(10 ** (speech_db / 20))
    noise = hiss(num_samples, seed=2) * np.float32(10 ** (noise_db / 20))
    noisy = add_noise(speech, noise, snr_db)
    measured_db = level_db(speech) - level_db(noisy - speech)
    # Rounding of the sum to 24 bits is itself a noise at about 140 dB.
    assert measured_db == pytest.approx(snr_db, abs=0.1)
    assert noisy.dtype == np.float32


def test_noise_is_added_as_torchaudio_adds_it():
    speech = syllables(2.0)
    noise = hiss(len(speech))
    expected = torchaudio.functional.add_noise(
        torch.from_numpy(speech)[None], torch.from_numpy(noise)[None], torch.tensor([7.0])
    )
    np.testing.assert_allclose(add_noise(speech, noise, 7.0), expected[0].numpy(), atol=1e-6)


def test_speech_keeps_its_level_and_silence_stays_silence():
    speech = syllables(1.0)
    noise = hiss(len(speech), seed=7)
    noisy = add_noise(speech, noise, 0.0)
    # The part of the sum that is speech, by projection.
    assert np.dot(noisy, speech) / np.dot(speech, speech) == pytest.approx(1.0, abs=0.05)
    silence = np.zeros(16_000, np.float32)
    assert np.array_equal(add_noise(silence, hiss(16_000), 10.0), silence)
    assert np.array_equal(add_noise(speech, np.zeros_like(speech), 10.0), speech)
    assert add_noise(np.zeros(0, np.float32), np.zeros(0, np.float32), 10.0).shape == (0,)


def test_voices_are_equally_loud_in_babble_whatever_their_levels():
    loud = hiss(8000, seed=1, amplitude=0.5)
    soft = hiss(8000, seed=2, amplitude=0.001)
    mixture = mix_voices([loud, soft, np.zeros(8000, np.float32)])
    for voice in (loud, soft):
        unit = voice / np.sqrt(power(voice))
        assert np.mean(mixture * unit) == pytest.approx(1.0, abs=0.05)
    assert np.isfinite(mixture).all()


@given(st.integers(1, 50), st.integers(0, 100), st.integers(0, 120))
def test_a_short_recording_goes_on_from_its_beginning(length, start, num_samples):
    """out[i] == recording[(start + i) mod length]"""
    recording = np.arange(length, dtype=np.float32)
    cut = cut_or_repeat(recording, start, num_samples)
    assert cut.tolist() == [(start + position) % length for position in range(num_samples)]
