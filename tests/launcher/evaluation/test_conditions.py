"""What recordings go through to see what a model withstands."""

import numpy as np
import pytest
import soundfile

from data.augmentation.noise import power
from data.errors import DataError
from launcher.evaluation.conditions import conditions

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def waveform() -> np.ndarray:
    generator = np.random.default_rng(0)
    return (0.1 * generator.standard_normal(RATE_HZ)).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [8000, 16_000])
def test_every_condition_changes_recordings_and_always_in_the_same_way(waveform, rate_hz):
    listed = conditions(rate_hz)
    names = [condition.name for condition in listed]
    assert len(set(names)) == len(names)
    for kind in ("noise", "room", "telephone", "mu-law", "MP3", "Opus", "G.722", "speed"):
        assert any(kind in name for name in names), kind
    for condition, again in zip(listed, conditions(rate_hz), strict=True):
        if condition.missing:
            continue
        changed = condition.effect(waveform, "key")
        assert changed.dtype == np.float32
        assert not np.array_equal(changed, waveform), condition.name
        assert np.array_equal(changed, again.effect(waveform, "key")), condition.name
        if condition.name.startswith("speed"):
            speed = float(condition.name.split()[1])
            assert len(changed) == round(len(waveform) / speed)
        else:
            assert len(changed) == len(waveform)


def test_noise_has_the_ratio_that_its_name_says(waveform):
    for condition in conditions(RATE_HZ):
        if "noise" not in condition.name:
            continue
        noise = condition.effect(waveform, "key") - waveform
        snr_db = float(condition.name.split()[-2])
        assert 10 * np.log10(power(waveform) / power(noise)) == pytest.approx(snr_db, abs=0.1)


def test_noise_may_be_that_of_recordings(waveform, tmp_path):
    tone = 0.2 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE_HZ) / RATE_HZ)
    soundfile.write(tmp_path / "tone.wav", tone, RATE_HZ)
    condition = conditions(RATE_HZ, str(tmp_path))[0]
    noise = condition.effect(waveform, "key") - waveform
    spectrum = np.abs(np.fft.rfft(noise))
    assert spectrum.argmax() == 440
    with pytest.raises(DataError, match="is no folder"):
        conditions(RATE_HZ, str(tmp_path / "nowhere"))
