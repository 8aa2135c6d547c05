"""Which frames are masked for a model that learns without transcripts."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.features import FeaturesConfig
from data.masking import Masking, MaskingConfig, fully_masked_frames, masked_share
from data.sampling.sampler import BatchesConfig, BatchSampler

FEATURES = FeaturesConfig()
LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=4)


def masking(seed: int = 1, factor: int = 4, **config) -> Masking:
    return Masking(MaskingConfig.model_validate(config), FEATURES, factor, seed)


def spans_of(masked_T: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], masked_T.astype(int), [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@settings(deadline=None, max_examples=50)
@given(LENGTHS, st.integers(0, 1000), st.integers(0, 7), st.sampled_from([0.01, 0.1, 0.5]))
def test_masks_are_spans_of_full_length_cut_by_the_end_of_their_utterance_alone(lengths, step, lane, probability):
    """Every run of masked frames is at least a span long or ends where its utterance ends; none lies beyond."""
    frame_masking = masking(start_probability=probability, span_s=0.12)
    masked_BT = frame_masking.frames(step, lane, lengths).numpy()
    assert masked_BT.shape == (len(lengths), max(lengths))
    for masked_T, length in zip(masked_BT, lengths, strict=True):
        assert not masked_T[length:].any()
        assert all(stop - start >= 12 or stop == length for start, stop in spans_of(masked_T))


@settings(deadline=None, max_examples=50)
@given(LENGTHS, st.integers(0, 1000))
def test_padding_and_the_order_of_lanes_have_no_part_in_what_is_masked(lengths, step):
    """frames(step, lane, a + b)[: len(a)] == frames(step, lane, a), and again when it is asked for later."""
    frame_masking = masking(start_probability=0.1)
    masked_BT = frame_masking.frames(step, 0, lengths)
    longer_BT = frame_masking.frames(step, 0, [*lengths, 400])
    assert longer_BT[:-1, : max(lengths)].equal(masked_BT)
    frame_masking.frames(step, 1, [50])
    assert frame_masking.frames(step, 0, lengths).equal(masked_BT)


def test_steps_lanes_and_seeds_mask_other_frames():
    masks = []
    for seed, step, lane in ((1, 0, 0), (1, 1, 0), (1, 0, 1), (2, 0, 0)):
        masks.append(masking(seed).frames(step, lane, [2000]))
    for one, other in itertools.combinations(masks, 2):
        assert not one.equal(other)


def test_the_share_of_masked_frames_is_what_probability_and_span_give():
    """1 - (1 - p)^span: 33 % for the paper's p = 0.01 and 40 frames."""
    masked = masking().frames(0, 0, [200_000]).float().mean().item()
    assert masked_share(MaskingConfig(), FEATURES) == pytest.approx(0.331, abs=0.001)
    assert masked == pytest.approx(masked_share(MaskingConfig(), FEATURES), abs=0.02)


@settings(deadline=None, max_examples=50)
@given(LENGTHS, st.integers(0, 1000), st.sampled_from([4, 6, 8]))
def test_an_encoder_frame_is_predicted_when_all_of_it_is_masked(lengths, step, factor):
    """predicted[s] == all of the utterance's frames in [factor s, factor (s + 1)) are masked, and there is one."""
    frame_masking = masking(factor=factor, start_probability=0.05, span_s=0.1)
    masked_BT = frame_masking.frames(step, 0, lengths)
    predicted_BS = fully_masked_frames(masked_BT, torch.tensor(lengths), factor)
    assert predicted_BS.shape == (len(lengths), -(-max(lengths) // factor))
    for masked_T, predicted_S, length in zip(masked_BT, predicted_BS, lengths, strict=True):
        for s, predicted in enumerate(predicted_S.tolist()):
            masked_in_frame = masked_T[factor * s : min(factor * (s + 1), length)]
            assert predicted == (len(masked_in_frame) > 0 and bool(masked_in_frame.all()))


def make_sampler(num_utterances: int, lanes: int) -> BatchSampler:
    zeros = np.zeros(num_utterances, dtype=np.int32)
    return BatchSampler(
        shard=zeros,
        samples=np.random.default_rng(0).integers(16_000, 160_000, num_utterances),
        tokens=zeros,
        min_frames=zeros,
        batches=BatchesConfig(lanes=lanes, seconds=20),
        seed=1,
        sample_rate_hz=16_000,
        speeds=(0.9, 1.0, 1.1),
        encoder_frames=lambda samples: (FEATURES.num_frames(samples) + 3) // 4,
    )


def test_a_lane_without_an_utterance_masks_nothing():
    sampler = make_sampler(num_utterances=2, lanes=3)
    predicted_BS = fully_masked_frames(masking().frames(0, 2, []), torch.zeros(0, dtype=torch.int64), factor=4)
    assert predicted_BS.shape == (0, 0)
    assert masking(start_probability=0.5).count(sampler, 0) > 0


def test_the_count_of_a_step_is_what_its_lanes_mask_together():
    sampler = make_sampler(num_utterances=40, lanes=3)
    frame_masking = masking()
    for step in (0, 3, sampler.steps_per_epoch + 1):
        by_lane = []
        for lane in range(3):
            lengths = FEATURES.num_frames(sampler.micro_batch(step, lane).samples)
            masked_BT = frame_masking.frames(step, lane, lengths.tolist())
            by_lane.append(int(fully_masked_frames(masked_BT, torch.from_numpy(lengths), 4).sum()))
        assert frame_masking.count(sampler, step) == sum(by_lane) > 0


def test_noise_has_its_deviation_and_is_of_its_step_and_lane():
    noise = masking(noise=0.3).noise(2, 1, (1, 2000, 10))
    assert noise.std().item() == pytest.approx(0.3, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.equal(masking(noise=0.3).noise(2, 1, (1, 2000, 10)))
    assert not noise.equal(masking(noise=0.3).noise(2, 0, (1, 2000, 10)))
    assert not masking(noise=0).noise(0, 0, (1, 10, 10)).any()


def test_noise_stands_in_masked_spans_and_nowhere_else():
    frame_masking = masking(start_probability=0.05)
    lengths = [300, 120]
    features_BTF = torch.ones(2, 310, 5)
    noisy_BTF, masked_BT = frame_masking.apply_mask(features_BTF, torch.tensor(lengths), 4, 2)
    assert masked_BT[:, :300].equal(frame_masking.frames(4, 2, lengths))
    assert not masked_BT[:, 300:].any()
    assert noisy_BTF[masked_BT].equal(frame_masking.noise(4, 2, (2, 310, 5))[masked_BT])
    assert noisy_BTF[~masked_BT].eq(1).all()


def test_a_span_shorter_than_an_encoder_frame_is_refused():
    with pytest.raises(ValueError, match=r"choose at least 0\.08"):
        masking(factor=8, span_s=0.04)
