"""Log-mel features and their statistics."""

import time

import kaldi_native_fbank
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from data.audio import Clip, Utterance
from data.errors import DataError
from data.features import FeaturesConfig, LogMel, measure_statistics
from data.shards.reader import ShardReader
from data.shards.writer import read_index, write_split

AUDIO = ROOT / "data" / "embedded" / "aelita" / "audio"


def noise(seed, *shape):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def normalised(config):
    features = LogMel(config)
    features.set_statistics(torch.linspace(-4, 2, config.mel_bins), torch.linspace(1, 3, config.mel_bins))
    return features


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features") / "train"
    utterances = [Utterance(path.stem, (Clip(path),), "слово", "train") for path in sorted(AUDIO.glob("*.opus"))[:6]]
    write_split(utterances, folder, sample_rate_hz=16000, shard_seconds=30, seed=1)
    return ShardReader(read_index(folder))


@pytest.mark.parametrize("kind", ["log_mel", "kaldi"])
def test_features_of_an_utterance_are_the_same_alone_and_in_a_padded_batch_of_noise(kind):
    features = normalised(FeaturesConfig(kind=kind))
    samples_B = torch.tensor([16000, 9999, 400, 399])
    # What lies beyond an utterance is noise here: none of it may reach a valid frame.
    waveforms_BS = noise(0, 4, 16000)
    features_BTF, lengths_B = features(waveforms_BS, samples_B)
    assert lengths_B.tolist() == [98, 60, 1, 0]
    for row, (samples, length) in enumerate(zip(samples_B.tolist(), lengths_B.tolist(), strict=True)):
        alone_BTF, _ = features(waveforms_BS[row : row + 1, :samples], samples_B[row : row + 1])
        assert alone_BTF.shape[1] == length
        # The same additions in another order: fp32 rounding.
        torch.testing.assert_close(features_BTF[row, :length], alone_BTF[0], rtol=1e-5, atol=1e-5)
        assert not features_BTF[row, length:].any()


def test_a_tone_is_loudest_in_the_bin_around_its_frequency_and_louder_when_louder():
    config = FeaturesConfig(mel_bins=40)
    tone_S = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)
    features_BTF, _ = LogMel(config)(torch.stack([0.5 * tone_S, 0.05 * tone_S]), torch.tensor([16000, 16000]))
    # Centres of 40 HTK mel filters between 20 and 8000 Hz: m = 2595 log10(1 + f / 700).
    mel_low, mel_high = (2595 * np.log10(1 + hertz / 700) for hertz in (20, 8000))
    centres_hz = 700 * (10 ** (np.linspace(mel_low, mel_high, 42)[1:-1] / 2595) - 1)
    assert features_BTF[0].mean(0).argmax() == np.abs(centres_hz - 1000).argmin()
    peak = features_BTF[0].mean(0).argmax()
    # A tenth of the amplitude is a hundredth of the power.
    difference = (features_BTF[0, :, peak] - features_BTF[1, :, peak]).mean()
    assert difference == pytest.approx(np.log(100), abs=1e-3)


def kaldi_fbank(waveform: np.ndarray, config: FeaturesConfig) -> np.ndarray:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.samp_freq = config.sample_rate_hz
    options.mel_opts.num_bins = config.mel_bins
    options.mel_opts.low_freq = config.low_hz
    options.mel_opts.high_freq = config.high_hz or 0.0
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(config.sample_rate_hz, waveform.tolist())
    fbank.input_finished()
    return np.stack([fbank.get_frame(frame) for frame in range(fbank.num_frames_ready)])


@pytest.mark.parametrize("bins", [{}, {"mel_bins": 40, "low_hz": 60.0, "high_hz": 7600.0}])
def test_features_of_the_kind_kaldi_are_kaldis(reader, bins):
    """|ours - Kaldi's| < 1e-3 in every bin of every frame, on recordings of a reader; 2e-3 in the faintest, within e of
    the floor, where Kaldi's own fp32 is up to 1e-3 from an exact spectrum."""
    config = FeaturesConfig(kind="kaldi", floor=float(torch.finfo(torch.float32).eps), **bins)
    for utterance in range(3):
        waveform = reader.read(utterance).waveform
        expected = kaldi_fbank(waveform, config)
        features_BTF, lengths_B = LogMel(config)(torch.from_numpy(waveform)[None], torch.tensor([len(waveform)]))
        assert lengths_B.tolist() == [len(expected)]
        error = np.abs(features_BTF[0].numpy() - expected)
        faint = expected < np.log(config.floor) + 1
        assert error[~faint].max() < 1e-3
        assert error.max() < 2e-3
        assert faint.mean() < 0.2


def test_the_two_kinds_of_features_are_two_views_of_one_spectrum(reader):
    """On speech they differ and still go together."""
    waveform = torch.from_numpy(reader.read(0).waveform)
    ours, kaldis = (
        LogMel(FeaturesConfig(kind=kind))(waveform[None], torch.tensor([len(waveform)]))[0].flatten()
        for kind in ("log_mel", "kaldi")
    )
    assert not torch.allclose(ours, kaldis, atol=0.1)
    assert torch.corrcoef(torch.stack([ours, kaldis]))[0, 1] > 0.9


def test_features_are_fp32_and_the_same_under_autocast():
    features = normalised(FeaturesConfig())
    waveforms_BS = noise(1, 2, 8000)
    samples_B = torch.tensor([8000, 5000])
    expected_BTF, _ = features(waveforms_BS, samples_B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features_BTF, _ = features(waveforms_BS, samples_B)
    assert features_BTF.dtype == torch.float32
    assert torch.equal(features_BTF, expected_BTF)


@given(st.integers(0, 10**6))
def test_the_number_of_frames_agrees_between_ints_arrays_tensors_and_the_features(samples):
    config = FeaturesConfig()
    frames = config.num_frames(samples)
    assert frames == max(0, (samples - 400) // 160 + 1)
    assert config.num_frames(np.array([samples])).tolist() == [frames]
    assert config.num_frames(torch.tensor([samples])).tolist() == [frames]


def test_an_empty_batch_has_no_features():
    features_BTF, lengths_B = LogMel(FeaturesConfig())(torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64))
    assert features_BTF.shape == (0, 0, 80)
    assert lengths_B.shape == (0,)


def test_measured_statistics_make_real_speech_zero_mean_and_unit_variance(reader):
    config = FeaturesConfig()
    features = LogMel(config)
    features.set_statistics(*measure_statistics(reader, config, seed=3))
    frames = []
    for utterance in range(len(reader.index)):
        waveform = torch.from_numpy(reader.read(utterance).waveform)
        features_BTF, _ = features(waveform[None], torch.tensor([len(waveform)]))
        frames.append(features_BTF[0])
    every_TF = torch.cat(frames)
    torch.testing.assert_close(every_TF.mean(0), torch.zeros(80), atol=1e-3, rtol=0)
    torch.testing.assert_close(every_TF.std(0), torch.ones(80), atol=1e-3, rtol=0)


def test_statistics_of_a_part_depend_on_the_seed_only(reader):
    config = FeaturesConfig()
    first, again, other = (measure_statistics(reader, config, seed, utterances=2) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_statistics_travel_with_the_saved_weights():
    config = FeaturesConfig(mel_bins=40)
    restored = LogMel(config)
    restored.load_state_dict(normalised(config).state_dict())
    waveforms_BS = noise(2, 1, 4000)
    samples_B = torch.tensor([4000])
    assert torch.equal(restored(waveforms_BS, samples_B)[0], normalised(config)(waveforms_BS, samples_B)[0])


def test_shards_of_another_sample_rate_are_refused(reader):
    with pytest.raises(DataError, match=r"16000 Hz and features.sample_rate_hz is 8000"):
        measure_statistics(reader, FeaturesConfig(sample_rate_hz=8000), seed=0)


@pytest.mark.parametrize(
    ("settings", "seen"),
    [({"high_hz": 9000.0}, "9000.0 does not lie below half"), ({"mel_bins": 200}, "filters are empty")],
)
def test_filters_that_the_spectrum_cannot_hold_are_refused(settings, seen):
    with pytest.raises(ValueError, match=seen):
        FeaturesConfig(**settings)


def test_sixteen_seconds_of_audio_take_a_few_milliseconds():
    features = LogMel(FeaturesConfig())
    waveforms_BS = noise(3, 2, 128000)
    samples_B = torch.tensor([128000, 128000])
    took_s = []
    for _ in range(5):
        began = time.process_time()
        features(waveforms_BS, samples_B)
        took_s.append(time.process_time() - began)
    # Measured 4 ms on one core; the bar leaves room for a busy machine.
    assert min(took_s) < 0.04
