"""Confidences of words against what was right."""

import numpy as np
import pytest

from launcher.evaluation.calibration import apply_temperature, calibration, fit_temperature, judged_words
from launcher.evaluation.normalisation import basic


def test_a_word_is_right_when_it_stands_at_its_place():
    words = [("A", 0.9), ("x,", 0.4), ("…", 0.1), ("c-d", 0.7)]
    confidences, right = judged_words("a b c, d", words, basic)
    # What is nothing but punctuation is not judged; both parts of a word have its confidence.
    assert confidences == [0.9, 0.4, 0.7, 0.7]
    assert right == [True, False, True, True]


def test_an_empty_hypothesis_or_reference_has_no_right_words():
    assert judged_words("a", [], basic) == ([], [])
    assert judged_words("", [("a", 0.5)], basic) == ([0.5], [False])


def drawn(temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Confidences whose log odds are too large by a factor."""
    generator = np.random.default_rng(3)
    odds = generator.normal(1.0, 1.0, 20_000)
    right = generator.random(20_000) < 1 / (1 + np.exp(-odds))
    return 1 / (1 + np.exp(-odds * temperature)), right


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_factor_by_which_confidences_are_too_sure(temperature):
    confidences, right = drawn(temperature)
    fitted = fit_temperature(confidences.tolist(), right.tolist())
    assert fitted == pytest.approx(temperature, rel=0.05)
    result = calibration(confidences.tolist(), right.tolist(), fitted)
    # Each bin of 2000 words is right to within a percent or so.
    assert result["tempered"]["ece"] < 0.015
    assert result["tempered"]["nll"] <= result["as_given"]["nll"] + 1e-6
    if temperature != 1.0:
        assert result["as_given"]["ece"] > 4 * result["tempered"]["ece"]


def test_the_expected_calibration_error_is_the_mean_distance_of_bins():
    confidences = [0.95, 0.95, 0.95, 0.95, 0.15]
    result = calibration(confidences, [True, True, True, False, False], None)
    assert result["as_given"]["ece"] == pytest.approx(4 / 5 * 0.2 + 1 / 5 * 0.15)
    assert [row["words"] for row in result["as_given"]["curve"]] == [1, 4]
    assert "tempered" not in result


@pytest.mark.parametrize("right", [[True, True], [False, False]])
def test_where_all_is_right_or_wrong_the_temperature_stays_finite(right):
    temperature = fit_temperature([0.0, 1.0], right)
    assert temperature is not None
    assert 0.04 < temperature < 21
    assert np.isfinite(apply_temperature(np.array([0.0, 0.5, 1.0]), temperature)).all()


def test_without_words_there_is_nothing_to_fit():
    assert fit_temperature([], []) is None
    assert calibration([], [], None) == {"words": 0, "temperature": None}
