"""Volume and clipping."""

import numpy as np
import pytest
from signals import level_db, syllables

from data.augmentation.loudness import change_volume, clip_peaks


@pytest.mark.parametrize("gain_db", [-60.0, -6.0, 0.0, 12.0])
def test_volume_changes_by_the_gain_alone(gain_db):
    speech = syllables(1.0)
    changed = change_volume(speech, gain_db)
    assert changed.dtype == np.float32
    assert level_db(changed) - level_db(speech) == pytest.approx(gain_db, abs=0.01)
    np.testing.assert_allclose(changed / np.abs(changed).max(), speech / np.abs(speech).max(), atol=1e-6)


@pytest.mark.parametrize("level", [0.01, 0.3, 0.9])
def test_samples_are_cut_off_at_a_share_of_the_peak_and_those_below_stay(level):
    speech = syllables(1.0)
    limit = np.float32(level) * np.abs(speech).max()
    clipped = clip_peaks(speech, level)
    assert np.abs(clipped).max() == pytest.approx(limit)
    below = np.abs(speech) < limit
    assert np.array_equal(clipped[below], speech[below])
    assert (np.abs(clipped[~below]) == limit).all()


def test_a_level_of_all_of_the_peak_and_silence_change_nothing():
    speech = syllables(0.2)
    assert np.array_equal(clip_peaks(speech, 1.0), speech)
    silence = np.zeros(100, np.float32)
    assert np.array_equal(clip_peaks(silence, 0.5), silence)
    assert clip_peaks(np.zeros(0, np.float32), 0.5).shape == (0,)
