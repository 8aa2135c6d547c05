"""Sets of recordings: shards and folders of audio files, and what is refused."""

import shutil

import numpy as np
import pytest
import soundfile
from phrases import phrase_utterances
from signals import hiss, shift_of, tone

from data.augmentation.draws import Draws
from data.augmentation.recordings import (
    FolderSet,
    ShardSet,
    check_recordings,
    open_recordings,
    recordings_identity,
)
from data.errors import DataError
from data.shards.writer import write_split


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings") / "train"
    write_split(phrase_utterances(6), folder, sample_rate_hz=16_000, shard_seconds=10, seed=1, workers=1)
    return folder


def write(path, waveform, rate_hz=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, rate_hz, subtype="FLOAT" if path.suffix == ".wav" else None)


def test_a_place_is_drawn_in_a_long_recording_and_a_short_one_is_repeated(tmp_path):
    long = hiss(32_000)
    write(tmp_path / "long.wav", long)
    write(tmp_path / "short.wav", long[:500])
    recordings = open_recordings(str(tmp_path), 16_000)
    assert len(recordings) == 2
    starts = set()
    for step in range(30):
        cut = recordings.read(0, Draws(1, step), "place", 4000)
        start = -shift_of(cut, long)
        assert np.array_equal(cut, long[start : start + 4000])
        starts.add(start)
        repeated = recordings.read(1, Draws(1, step), "place", 1700)
        assert np.array_equal(repeated[:1200], repeated[500:])
        assert set(repeated.tolist()) == set(long[:500].tolist())
    assert len(starts) > 25
    assert np.array_equal(recordings.read_beginning(0, 100), long[:100])
    assert np.array_equal(recordings.read_beginning(1, 10**6), long[:500])


def test_only_what_is_asked_for_is_decoded(tmp_path, monkeypatch):
    write(tmp_path / "hour.wav", np.zeros(600_000, np.float32) + 0.1)
    decoded = []
    read = soundfile.SoundFile.read

    def count(self, frames=-1, **options):
        decoded.append(frames)
        return read(self, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", count)
    FolderSet(tmp_path, 16_000).read(0, Draws(1), "place", 1000)
    assert decoded == [1000]


def test_files_of_other_rates_and_channels_are_resampled_and_averaged(tmp_path):
    stereo = np.stack([tone(440, 1.0, 48_000), -0.5 * tone(440, 1.0, 48_000)], axis=1)
    write(tmp_path / "a.flac", stereo, 48_000)
    waveform = open_recordings(str(tmp_path), 16_000).read_beginning(0, 16_000)
    assert len(waveform) == 16_000
    np.testing.assert_allclose(waveform[1000:-1000], 0.25 * tone(440, 1.0)[1000:-1000], atol=1e-3)
    assert len(open_recordings(str(tmp_path), 16_000).read(0, Draws(1), "place", 40_000)) == 40_000


def test_files_stand_in_the_order_of_their_names_and_lists_among_them_are_no_audio(tmp_path):
    for name in ("b/2.wav", "a.WAV", "b/1.flac"):
        write(tmp_path / name, hiss(100))
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / "b" / "list.txt").write_text("1.flac")
    names = [str(path.relative_to(tmp_path)) for path in FolderSet(tmp_path, 16_000).files]
    assert names == ["a.WAV", "b/1.flac", "b/2.wav"]


def test_shards_are_read_as_the_split_that_they_are(shards):
    recordings = open_recordings(str(shards), 16_000)
    assert isinstance(recordings, ShardSet)
    assert len(recordings) == 6
    whole = recordings.read_beginning(2, 10**9)
    cut = recordings.read(2, Draws(1), "place", 1000)
    start = -shift_of(cut, whole)
    assert np.array_equal(cut, whole[start : start + 1000])


def refusal(path, rate_hz=16_000):
    with pytest.raises(DataError) as error:
        check_recordings(str(path), rate_hz)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError):
        open_recordings(str(path), rate_hz)
    return str(error.value)


def test_a_set_that_is_not_there_is_empty_or_of_another_rate_is_refused(tmp_path, shards):
    assert "is no folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    assert "is no folder" in refusal(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "holds neither shards nor audio files" in refusal(tmp_path / "empty")
    assert "have 16000 Hz, and features.sample_rate_hz is 8000" in refusal(shards, 8000)
    assert f"such as {shards}" in refusal(shards.parent)
    torn = tmp_path / "torn"
    shutil.copytree(shards, torn)
    (torn / "shards.json").write_text("{")
    assert "are not whole" in refusal(torn)


def test_a_file_that_is_no_audio_or_breaks_off_is_named(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"no audio at all")
    write(tmp_path / "b.flac", hiss(40_000))
    content = (tmp_path / "b.flac").read_bytes()
    (tmp_path / "b.flac").write_bytes(content[: len(content) // 2])
    write(tmp_path / "c.wav", np.zeros(0, np.float32))
    recordings = FolderSet(tmp_path, 16_000)
    for number, name in enumerate(("a.wav", "b.flac", "c.wav")):
        with pytest.raises(DataError, match=name):
            recordings.read(number, Draws(1), "place", 30_000)
        with pytest.raises(DataError, match=name):
            recordings.read_beginning(number, 30_000)


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
def test_a_recording_of_what_are_no_samples_is_named_and_reaches_no_utterance(tmp_path, value, rate_hz):
    samples = hiss(20_000)
    samples[:20] = value
    write(tmp_path / "float.wav", samples, rate_hz)
    recordings = open_recordings(str(tmp_path), 16_000)
    with pytest.raises(DataError, match=r"float\.wav holds samples that are no level of sound"):
        recordings.read_beginning(0, 10_000)
    with pytest.raises(DataError, match=r"float\.wav holds samples that are no level of sound"):
        recordings.read(0, Draws(1, 1), "place", 40_000)


def test_what_a_set_is_known_by_changes_with_its_content_and_not_with_its_place(tmp_path, shards):
    write(tmp_path / "one" / "a.wav", hiss(100))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    identity = recordings_identity(str(tmp_path / "one"))
    assert identity == recordings_identity(str(tmp_path / "two"))
    write(tmp_path / "two" / "b.wav", hiss(100))
    assert identity != recordings_identity(str(tmp_path / "two"))
    assert recordings_identity(str(tmp_path / "nowhere")) is None
    shutil.copytree(shards, tmp_path / "shards")
    assert recordings_identity(str(tmp_path / "shards")) == recordings_identity(str(shards))
