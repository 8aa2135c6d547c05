"""G.722 as telephone exchanges store it: samples without any header."""

import sys

import numpy as np
import pytest
from G722 import G722

from data.audio import AudioError, Clip, Utterance, audio_seconds, read_audio, read_clip
from data.containers import g722
from data.errors import DataError


@pytest.fixture
def tone(tmp_path):
    samples = np.sin(np.arange(16000) * 0.2) * 8000
    path = tmp_path / "activated.g722"
    path.write_bytes(G722(16000, 64000).encode(samples.astype(np.int16).tolist()))
    return path


def test_a_recording_has_its_length_and_sounds_as_it_did(tone):
    assert audio_seconds(tone) == 1.0
    samples = read_audio(Utterance("a", (Clip(tone),), "activated", "train"), 16000)
    assert samples.dtype == np.float32
    # The codec delays by 22 samples and is coarse; the tone is what it was within a few per cent.
    expected = np.sin(np.arange(16000) * 0.2) * 8000 / 32768
    assert np.abs(samples[1000 + 22 :] - expected[1000:-22]).max() < 0.03
    np.testing.assert_array_equal(read_clip(Clip(tone, 0.25, 0.5), 16000), samples[4000:12000])


def test_a_file_that_begins_like_another_container_is_still_what_its_name_says(tmp_path):
    path = tmp_path / "noise.G722"
    path.write_bytes(b"\xff\xfb\x90\x00" + np.random.default_rng(1).bytes(4000))
    assert audio_seconds(path) == pytest.approx(8008 / 16000)


def test_an_empty_a_missing_and_an_endless_file_are_refused(tmp_path, monkeypatch):
    empty = tmp_path / "empty.g722"
    empty.write_bytes(b"")
    with pytest.raises(AudioError, match="holds no samples"):
        read_clip(Clip(empty), 16000)
    with pytest.raises(DataError, match="there is no audio file"):
        audio_seconds(tmp_path / "gone.g722")
    monkeypatch.setattr(g722, "MAX_BYTES", 10)
    long = tmp_path / "long.g722"
    long.write_bytes(bytes(11))
    with pytest.raises(DataError, match="more than the 10 bytes"):
        audio_seconds(long)


def test_without_the_package_the_message_says_how_to_install_it(tone, monkeypatch):
    monkeypatch.setitem(sys.modules, "G722", None)
    with pytest.raises(DataError, match=r"pip install 'chorus-asr\[g722\]'"):
        audio_seconds(tone)
