"""Time warp of features: what moves, and by how much."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.augmentation import warp_time
from data.augmentation.time_warp import TimeWarpConfig
from data.features import FeaturesConfig

FEATURES = FeaturesConfig()
ALWAYS = TimeWarpConfig(probability=1.0, width_s=0.2)  # 20 frames


def ramps(lengths, frames, bins=3):
    """Features whose value is the number of their frame, and which are zero beyond their lengths."""
    positions_T = torch.arange(frames, dtype=torch.float32)
    valid_BT = positions_T < torch.tensor(lengths)[:, None]
    return (positions_T * valid_BT)[:, :, None].expand(-1, -1, bins).contiguous()


def warp(config, lengths, seed, frames=None):
    features_BTF = ramps(lengths, frames or max(lengths, default=0))
    generator = torch.Generator().manual_seed(seed)
    return features_BTF, warp_time(features_BTF, torch.tensor(lengths), config, FEATURES, generator)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 120), min_size=1, max_size=4), st.integers(0, 10**6))
def test_time_goes_on_and_begins_and_ends_where_it_did(lengths, seed):
    """warped(0) == 0, warped(T - 1) == T - 1, warped is monotonous, and no frame is moved by W or more."""
    features_BTF, warped_BTF = warp(ALWAYS, lengths, seed, frames=130)
    for row, length in enumerate(lengths):
        times = warped_BTF[row, :length, 0]
        assert not warped_BTF[row, length:].any()
        if length == 0:
            continue
        assert times[0] == pytest.approx(0, abs=1e-6)
        assert times[-1] == pytest.approx(length - 1, abs=1e-3)
        assert (times.diff() > 0).all()
        assert (times - torch.arange(length)).abs().max() < 20
        if length <= 40:
            assert torch.equal(warped_BTF[row], features_BTF[row])


def test_every_shift_up_to_the_width_is_drawn_both_ways():
    shifts = set()
    for seed in range(400):
        _, warped_BTF = warp(TimeWarpConfig(probability=1.0, width_s=0.03), [40], seed)
        times = warped_BTF[0, :, 0]
        moved = times - torch.arange(40)
        shifts.add(round(float(moved[moved.abs().argmax()])))
    assert shifts == {-2, -1, 0, 1, 2}


def test_a_share_of_the_utterances_is_warped_and_the_others_stay_to_the_bit():
    features_BTF, warped_BTF = warp(TimeWarpConfig(probability=0.3, width_s=0.2), [100] * 1000, seed=1)
    same = (features_BTF == warped_BTF).all(-1).all(-1)
    # One in 39 that are warped draws a shift of 0.
    assert same.float().mean().item() == pytest.approx(0.7 + 0.3 / 39, abs=0.05)
    assert torch.equal(warp(TimeWarpConfig(probability=0.0), [100] * 3, 1)[1], features_BTF[:3])


def test_padding_and_the_seed_decide_nothing_else():
    _, narrow = warp(ALWAYS, [100, 80], seed=5)
    _, wide = warp(ALWAYS, [100, 80], seed=5, frames=150)
    assert torch.equal(narrow, wide[:, :100])
    assert not torch.equal(narrow, warp(ALWAYS, [100, 80], seed=6)[1])


def test_features_without_a_frame_or_an_utterance_stay_so():
    assert warp(ALWAYS, [0, 0], seed=1)[1].shape == (2, 0, 3)
    empty = torch.zeros(0, 10, 3)
    warped = warp_time(empty, torch.zeros(0, dtype=torch.int64), ALWAYS, FEATURES, torch.Generator())
    assert warped.shape == (0, 10, 3)


def test_extreme_widths_are_of_no_harm():
    for width_s in (1e-9, 60.0):
        _, warped_BTF = warp(TimeWarpConfig(probability=1.0, width_s=width_s), [50, 3, 1], seed=2)
        assert torch.isfinite(warped_BTF).all()
