"""Silence is not speech, and what is louder than full scale is not clipped without a word."""

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.audio import Clip, Utterance, read_clip
from data.containers import AudioError
from data.shards.index import read_index
from data.shards.reader import ShardReader
from data.shards.writer import write_split

RATE_HZ = 16000


def noise(seconds: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate_hz))


def write(path: Path, samples: np.ndarray, rate_hz: int = RATE_HZ, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    return path


SILENCES = {
    "zeros": np.zeros(RATE_HZ),
    "zeros of several channels": np.zeros((RATE_HZ, 6)),
    "one level": np.full(RATE_HZ, 0.25),
    "below one step of 16 bits": noise(1.0) * 1e-6,
}


@pytest.mark.parametrize("kind", SILENCES)
@pytest.mark.parametrize("rate_hz", [RATE_HZ, 44100])
def test_silence_is_no_speech_at_any_rate(tmp_path: Path, kind: str, rate_hz: int) -> None:
    path = write(tmp_path / "a.wav", SILENCES[kind], rate_hz)
    with pytest.raises(AudioError, match=r"a\.wav is digital silence: all of its 16000 samples are"):
        read_clip(Clip(path), RATE_HZ)


def test_a_silent_segment_or_channel_of_a_recording_is_no_speech(tmp_path: Path) -> None:
    spoken = np.concatenate([noise(1.0), np.zeros(RATE_HZ)])
    path = write(tmp_path / "call.wav", np.stack([spoken, np.zeros(2 * RATE_HZ)], axis=1))
    assert len(read_clip(Clip(path), RATE_HZ)) == 2 * RATE_HZ
    with pytest.raises(AudioError, match=r"call\.wav is digital silence: all of its 8000 samples are 0"):
        read_clip(Clip(path, 1.25, 0.5), RATE_HZ)
    with pytest.raises(AudioError, match=r"channel 1 of .*call\.wav is digital silence"):
        read_clip(Clip(path, channel=1), RATE_HZ)


def test_one_step_of_noise_is_no_silence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.sign(noise(0.5)) / 2**15, subtype="PCM_16")
    assert len(read_clip(Clip(path), RATE_HZ)) == RATE_HZ // 2


@pytest.mark.parametrize("unlike", [0.0, 1e-3])
@pytest.mark.parametrize("rate_hz", [RATE_HZ, 48000])
def test_channels_of_opposite_sign_are_named_and_each_is_read(tmp_path: Path, unlike: float, rate_hz: int) -> None:
    left = noise(0.5, rate_hz)
    path = write(tmp_path / "a.wav", np.stack([left, -left * (1 + unlike)], axis=1), rate_hz)
    for clip in (Clip(path), Clip(path, 0.1, 0.2)):
        with pytest.raises(AudioError, match="cancel each other out; take one of them"):
            read_clip(clip, RATE_HZ)
    assert len(read_clip(Clip(path, channel=1), RATE_HZ)) == RATE_HZ // 2


def test_a_quiet_recording_with_a_click_is_no_opposite_pair(tmp_path: Path) -> None:
    mono = noise(0.5) * 0.01
    mono[100] = 0.9
    assert len(read_clip(Clip(write(tmp_path / "a.wav", np.stack([mono, mono], axis=1))), RATE_HZ)) == RATE_HZ // 2


REJECTED = {
    "zeros.wav": (np.zeros(RATE_HZ), RATE_HZ, "digital silence: all of its 16000 samples are 0"),
    "one.wav": (np.full(1, 0.5), 48000, "lasts 0 samples, less than one frame of 0.025 s"),
    "none.wav": (np.zeros(0), RATE_HZ, "holds no samples"),
    "short.wav": (noise(0.02), RATE_HZ, "lasts 320 samples, less than one frame"),
    "opposite.wav": (np.outer(noise(0.5), [1, -1]), RATE_HZ, "cancel each other out"),
}


def test_each_kind_of_silence_is_a_rejected_row_that_says_which(tmp_path: Path) -> None:
    utterances = [Utterance("good", (Clip(write(tmp_path / "good.wav", noise(0.5))),), "t", "train", line=1)]
    for line, (name, (samples, rate_hz, _)) in enumerate(REJECTED.items(), 2):
        clip = Clip(write(tmp_path / name, samples, rate_hz))
        utterances.append(Utterance(name.removesuffix(".wav"), (clip,), "t", "train", line=line))
    report = write_split(utterances, tmp_path / "train", sample_rate_hz=RATE_HZ, shard_seconds=10, seed=1)
    assert report.utterances == 1
    reasons = {row.line: row.reason for row in report.rejected}
    assert sorted(reasons) == [2, 3, 4, 5, 6]
    for line, (_, _, reason) in enumerate(REJECTED.values(), 2):
        assert reason in reasons[line]


# --- full scale --------------------------------------------------------------------------------------


def test_samples_above_full_scale_are_clipped_with_a_count_and_the_loudest_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loud = noise(0.5)
    loud[100:105] = 1.5
    louder = noise(0.5)
    louder[200:300] = -1.25
    utterances = []
    for key, samples in (("good", noise(0.5)), ("loud", loud), ("louder", louder)):
        clip = Clip(write(tmp_path / f"{key}.wav", samples))
        utterances.append(Utterance(key, (clip,), "t", "train"))
    with caplog.at_level(logging.WARNING):
        write_split(utterances, tmp_path / "train", sample_rate_hz=RATE_HZ, shard_seconds=10, seed=1)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("2 utterances of train have samples above full scale, 105 in all, which were clipped")
    assert "louder has most, 100" in message

    reader = ShardReader(read_index(tmp_path / "train"))
    waveforms = {}
    for utterance in range(3):
        stored = reader.read(utterance)
        waveforms[stored.key] = stored.waveform
    # The others keep their level: nothing is scaled.
    np.testing.assert_allclose(waveforms["loud"][:100], loud[:100], atol=1 / 2**15)
    np.testing.assert_allclose(waveforms["louder"][200:300], -1)


def test_a_corpus_within_full_scale_gives_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = noise(0.5)
    samples[0] = 1.0
    samples[1] = -1.0
    utterance = Utterance("k", (Clip(write(tmp_path / "a.wav", samples)),), "t", "train")
    write_split([utterance], tmp_path / "train", sample_rate_hz=RATE_HZ, shard_seconds=10, seed=1)
    assert not caplog.records


@pytest.mark.parametrize("peak", [2.5, 32767.0, np.nan, np.inf])
def test_numbers_that_are_no_levels_of_sound_are_refused(tmp_path: Path, peak: float) -> None:
    samples = noise(0.5)
    samples[1000] = peak
    with pytest.raises(AudioError, match=r"a\.wav gives 8000 samples with a peak of"):
        read_clip(Clip(write(tmp_path / "a.wav", samples)), RATE_HZ)
