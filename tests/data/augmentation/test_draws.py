"""Where the randomness of augmentation comes from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.augmentation.draws import Draws

SEEDS = st.integers(0, 2**63 - 1)
KEYS = st.text(max_size=20)


@given(SEEDS, st.integers(0, 10**12), KEYS, KEYS)
def test_a_draw_depends_on_its_name_and_purpose_and_on_no_other_draw(seed, step, key, name):
    """Draws(p).uniform(n) == Draws(p).uniform(n), whatever was drawn between, and 0 <= it < 1"""
    first = Draws(seed, step, key).uniform(name)
    draws = Draws(seed, step, key)
    draws.uniform("something else")
    draws.below("and this", 7)
    assert draws.uniform(name) == first
    assert 0 <= first < 1


@pytest.mark.parametrize("changed", [(2, 3, "key", "name"), (1, 4, "key", "name"), (1, 3, "kez", "name"),
                                     (1, 3, "key", "nam")])  # fmt: skip
def test_seed_step_key_and_name_each_give_another_draw(changed):
    seed, step, key, name = changed
    assert Draws(seed, step, key).uniform(name) != Draws(1, 3, "key").uniform("name")


def test_draws_are_spread_evenly_over_utterances():
    values = np.array([Draws(1, step, f"key-{step % 7}").uniform("noise") for step in range(5000)])
    counts, _ = np.histogram(values, bins=10, range=(0, 1))
    assert counts.tolist() == pytest.approx([500] * 10, rel=0.2)
    chosen = [Draws(1, step).below("room", 5) for step in range(5000)]
    assert np.bincount(chosen, minlength=5).tolist() == pytest.approx([1000] * 5, rel=0.15)


def test_what_never_and_always_happens():
    for step in range(200):
        draws = Draws(1, step)
        assert not draws.happens("it", 0.0)
        assert draws.happens("it", 1.0)
        assert 2.0 <= draws.between("it", (2.0, 3.0)) < 3.0
        assert draws.between("it", (2.0, 2.0)) == 2.0
