"""Numbers and durations are short, and say when there is nothing to say."""

import math

import pytest

from launcher.formatting import MISSING, count, decimal, duration, giga, percent


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "–"),
        (812, "812"),
        (41_300, "41.3 k"),
        (999_900, "1.00 M"),
        (1_247_040, "1.25 M"),
        (3.1e9, "3.10 G"),
    ],
)
def test_counts_are_written_in_three_digits(number, text):
    assert count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.2, "4.2 s"),
        (12.4, "12 s"),
        (59.7, "1 min"),
        (200, "3 min 20 s"),
        (725, "12 min 5 s"),
        (7380, "2 h 3 min"),
        (12_000, "3 h 20 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations_are_written_in_their_two_largest_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("seconds", [None, math.inf, math.nan])
def test_a_duration_that_is_not_known_is_a_question_mark(seconds):
    assert duration(seconds) == "?"


@pytest.mark.parametrize("write", [count, decimal, giga, percent])
def test_a_number_that_was_not_measured_is_a_dash(write):
    assert write(None) == MISSING
