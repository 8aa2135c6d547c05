"""SpecAugment: where bands of mel bins and of time are masked."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.augmentation import AugmentConfig, SpecAugment
from data.features import FeaturesConfig


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def masked(config, lengths, seed=0, frames=300):
    """Where features of ones with zero padding became zero within the valid frames: one [T, F] per
    utterance.
    """
    lengths_B = torch.tensor(lengths)
    valid_BT = torch.arange(frames) < lengths_B[:, None]
    features_BTF = valid_BT[:, :, None].float().expand(-1, -1, 80).contiguous()
    augmented_BTF = SpecAugment(config, FeaturesConfig())(features_BTF, lengths_B, generator(seed))
    assert not augmented_BTF[~valid_BT].any()
    return [augmented_BTF[row, :length] == 0 for row, length in enumerate(lengths)]


def longest_run(mask):
    padded = np.concatenate([[0], mask.numpy().astype(int), [0]])
    begins = np.flatnonzero(np.diff(padded) == 1)
    ends = np.flatnonzero(np.diff(padded) == -1)
    return (ends - begins).max(initial=0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.integers(0, 10**6))
def test_one_time_mask_stays_in_the_utterance_and_below_both_of_its_limits(lengths, seed):
    config = AugmentConfig(frequency_masks=0, time_masks=1, time_width_s=0.2, time_ratio=0.1)
    for length, mask_TF in zip(lengths, masked(config, lengths, seed), strict=True):
        rows = mask_TF.all(1)
        assert torch.equal(rows, mask_TF.any(1))
        assert longest_run(rows) <= min(20, length // 10)
        # One mask that lies within the utterance is one run.
        assert rows.sum() == longest_run(rows)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_one_frequency_mask_covers_the_whole_utterance_and_stays_below_its_width(seed):
    config = AugmentConfig(frequency_masks=1, frequency_width_bins=15, time_masks=0)
    (mask_TF,) = masked(config, [100], seed)
    columns = mask_TF.all(0)
    assert torch.equal(columns, mask_TF.any(0))
    assert columns.sum() == longest_run(columns) <= 15


def test_every_width_and_place_is_drawn_alike():
    config = AugmentConfig(frequency_masks=1, frequency_width_bins=4, time_masks=0)
    masks = masked(config, [1] * 5000, frames=1)
    widths = torch.stack([mask_TF[0].sum() for mask_TF in masks])
    assert widths.bincount().tolist() == pytest.approx([1000] * 5, rel=0.12)
    columns = torch.stack([mask_TF[0] for mask_TF in masks]).float().mean(0)
    # Two of 80 bins are masked on average; only those near the edges less often.
    assert columns[8:-8].numpy() == pytest.approx(np.full(64, 2 / 78), rel=0.4)


def test_utterances_and_generators_get_masks_of_their_own_and_a_seed_repeats_them():
    config = AugmentConfig()
    first, again, other = (torch.stack(masked(config, [300, 300], seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_no_masks_change_nothing():
    assert not masked(AugmentConfig(frequency_masks=0, time_masks=0), [200])[0].any()


def test_the_features_that_were_given_are_not_changed():
    features_BTF = torch.ones(1, 100, 80)
    SpecAugment(AugmentConfig(), FeaturesConfig())(features_BTF, torch.tensor([100]), generator())
    assert features_BTF.all()


@pytest.mark.gpu
def test_masks_are_the_same_on_the_gpu():
    specaugment = SpecAugment(AugmentConfig(), FeaturesConfig())
    features_BTF = torch.ones(4, 300, 80)
    lengths_B = torch.tensor([300, 200, 100, 0])
    on_cpu = specaugment(features_BTF, lengths_B, generator())
    on_gpu = specaugment(features_BTF.cuda(), lengths_B.cuda(), generator())
    assert torch.equal(on_gpu.cpu(), on_cpu)
