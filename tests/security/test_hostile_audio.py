"""Audio from strangers: what exceeds the bounds is a rejected row that says so, in little memory and time."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from limits import run_limited

from data.audio import Clip, Utterance, read_audio, read_clip
from data.containers import AudioError
from data.errors import DataError
from data.recordings import MAX_CHANNELS, MAX_RATE_HZ, MAX_UTTERANCE_S, MIN_RATE_HZ, read_recording

RATE_HZ = 16000


def encoded(container: str, subtype: str, seconds: float = 0.3) -> bytes:
    file = io.BytesIO()
    noise = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE_HZ))
    soundfile.write(file, noise, RATE_HZ, format=container, subtype=subtype)
    return file.getvalue()


FLAC = encoded("FLAC", "PCM_16")
MP3 = encoded("MP3", "MPEG_LAYER_III")
OPUS = encoded("OGG", "OPUS")


def wav_header(num_bytes: int, channels: int, rate_hz: int) -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate_hz, 2 * channels * rate_hz, 2 * channels, 16)
    return struct.pack("<4sI4s", b"RIFF", num_bytes + 36, b"WAVE") + form + struct.pack("<4sI", b"data", num_bytes)


def silent_wav(path: Path, seconds: float, channels: int, rate_hz: int) -> None:
    """A WAV of zeros that takes no room on the disk."""
    num_bytes = round(seconds * rate_hz) * channels * 2
    with path.open("wb") as file:
        file.write(wav_header(num_bytes, channels, rate_hz))
        file.truncate(num_bytes + 44)


def write_hostile_files(folder: Path) -> dict[str, str]:
    """Files that ask for more than there is, each with a part of the reason for which it is refused."""
    samples = np.arange(10_000, dtype=np.int16).tobytes()
    (folder / "1-hz.wav").write_bytes(wav_header(len(samples), 1, 1) + samples)
    (folder / "2-ghz.wav").write_bytes(wav_header(len(samples), 1, 2**31 - 1) + samples)
    (folder / "1000-channels.wav").write_bytes(wav_header(len(samples), 1000, RATE_HZ) + samples)
    silent_wav(folder / "8-channels.wav", 60, 8, 96_000)
    silent_wav(folder / "two-hours.wav", 7200, 1, 8000)
    claim = (int.from_bytes(FLAC[18:26], "big") >> 36 << 36 | 2**36 - 1).to_bytes(8, "big")
    (folder / "2-to-the-36.flac").write_bytes(FLAC[:18] + claim + FLAC[26:])
    at = MP3.index(b"Xing") + 8
    (folder / "many-frames.mp3").write_bytes(MP3[:at] + b"\xff" * 4 + MP3[at + 4 :])
    (folder / "length-of-2-to-the-62.w64").write_bytes(
        encoded("W64", "PCM_16").replace(struct.pack("<Q", 9600 + 24), struct.pack("<Q", 2**62))
    )
    (folder / "nothing.flac").write_bytes(b"")
    soundfile.write(folder / "nan.wav", np.full(RATE_HZ, np.nan), RATE_HZ, subtype="FLOAT")
    return {
        "1-hz.wav": "sample rate of 1 Hz",
        "2-ghz.wav": "sample rate of 2147483647 Hz",
        "1000-channels.wav": "1000 channels",
        "8-channels.wav": "digital silence",
        "two-hours.wav": "7200 s of",
        "2-to-the-36.flac": "breaks off",
        "many-frames.mp3": "breaks off",
        "length-of-2-to-the-62.w64": "breaks off",
        "nothing.flac": "empty file",
        "nan.wav": "a peak of nan",
    }


PREPARE = """
import json, sys
from pathlib import Path
from data.corpora.folder import FolderConfig
from data.corpora.prepare import prepare
import webdataset.writer
"""


def test_prepare_rejects_files_that_would_exhaust_it_and_writes_the_others(tmp_path: Path) -> None:
    reasons = write_hostile_files(tmp_path)
    (tmp_path / "good.flac").write_bytes(FLAC)
    rows = [{"audio": name, "text": "one two", "split": "train"} for name in ("good.flac", *reasons)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_limited(
        PREPARE,
        """
config = FolderConfig(manifest=Path(sys.argv[1]))
prepare(config, Path(sys.argv[2]), seed=1)
""",
        tmp_path / "m.jsonl",
        tmp_path / "out",
        memory_bytes=160 * 2**20,
    )
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == len(reasons)
    for row in rejected:
        name = rows[row["line"] - 1]["audio"]
        assert name in row["reason"]
        assert reasons[name] in row["reason"]


@pytest.mark.parametrize("rate_hz", [MIN_RATE_HZ - 1, MAX_RATE_HZ + 1, 0])
def test_rates_beyond_the_bounds_are_refused(tmp_path: Path, rate_hz: int) -> None:
    (tmp_path / "a.wav").write_bytes(wav_header(2000, 1, rate_hz) + bytes(range(250)) * 8)
    with pytest.raises(AudioError, match=rf"a\.wav .*({rate_hz} Hz|not readable)"):
        read_recording(tmp_path / "a.wav")


@pytest.mark.parametrize("rate_hz", [MIN_RATE_HZ, MAX_RATE_HZ])
def test_rates_and_channels_at_the_bounds_are_read(tmp_path: Path, rate_hz: int) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal((rate_hz // 4, MAX_CHANNELS))
    soundfile.write(tmp_path / "a.wav", noise, rate_hz)
    assert len(read_clip(Clip(tmp_path / "a.wav"), RATE_HZ)) == RATE_HZ // 4


def test_a_segment_of_a_file_longer_than_an_utterance_may_be_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    silent_wav(path, MAX_UTTERANCE_S + 100, 1, 8000)
    with path.open("r+b") as file:
        file.seek(44 + 2 * 8000 * 3650)
        file.write(np.arange(8000, dtype=np.int16).tobytes())
    assert len(read_clip(Clip(path, 3650.0, 1.0), 8000)) == 8000
    with pytest.raises(AudioError, match=r"3700 s of .*a\.wav are more than the 3600 s"):
        read_clip(Clip(path), 8000)


def test_clips_that_together_are_longer_than_an_utterance_may_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(FLAC)
    clips = (Clip(tmp_path / "a.flac"), Clip(tmp_path / "a.flac"))
    with pytest.raises(DataError, match="clips last more than the 3600 s"):
        read_audio(Utterance("k", clips, "t", "train", gaps_s=(3599.9,)), 100)


def test_what_is_decoded_in_blocks_is_what_is_decoded_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal((50_000, 3))
    for rate_hz in (8000, 16000, 22050, 48000):
        soundfile.write(tmp_path / f"{rate_hz}.wav", noise, rate_hz)
        clip = Clip(tmp_path / f"{rate_hz}.wav", 0.1)
        whole = read_clip(clip, RATE_HZ)
        monkeypatch.setattr("data.recordings.BLOCK_VALUES", 3 * 777)
        np.testing.assert_array_equal(read_clip(clip, RATE_HZ), whole)
        monkeypatch.undo()


FUZZED = {
    "flac": FLAC,
    "mp3": MP3,
    "opus": OPUS,
    "vorbis": encoded("OGG", "VORBIS"),
    "wav": encoded("WAV", "PCM_16"),
    "adpcm": encoded("WAV", "IMA_ADPCM"),
    "aiff": encoded("AIFF", "PCM_16"),
    "w64": encoded("W64", "PCM_16"),
    "rf64": encoded("RF64", "PCM_16"),
    "caf": encoded("CAF", "PCM_16"),
    "au": encoded("AU", "PCM_16"),
    "sphere": encoded("NIST", "PCM_16"),
}
FLIPS = st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), min_size=1, max_size=4)


@pytest.mark.parametrize("name", FUZZED)
@settings(max_examples=25, derandomize=True, deadline=None)
@given(flips=FLIPS, cut=st.integers(0, 3))
@example(flips=[(0, 0)], cut=3)
def test_a_file_with_other_bytes_is_read_or_refused_with_its_name(
    tmp_path_factory: pytest.TempPathFactory, name: str, flips: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(FUZZED[name])
    for position, value in flips:
        content[position] = value
    path = tmp_path_factory.getbasetemp() / f"fuzzed.{name}"
    path.write_bytes(content[: len(content) // cut] if cut else content)
    reason = ""
    waveform = np.zeros(0)
    try:
        waveform = read_clip(Clip(path), RATE_HZ)
    except AudioError as error:
        reason = str(error)
    assert str(path) in reason or len(waveform) > 0
    assert len(waveform) <= MAX_UTTERANCE_S * RATE_HZ
    assert np.isfinite(waveform).all()
