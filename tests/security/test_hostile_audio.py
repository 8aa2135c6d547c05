"""Audio from strangers: what exceeds the bounds is a rejected row that says so, in little memory and time."""

import io
import json
import os
import struct
import time
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


def mpeg_frame(bitrate_code: int, rate_code: int) -> bytes:
    """A silent frame of MPEG 2, layer 3; 144 bytes at most."""
    word = 0x7FF << 21 | 2 << 19 | 1 << 17 | 1 << 16 | bitrate_code << 12 | rate_code << 10 | 3 << 6
    content = word.to_bytes(4, "big")
    return content.ljust(72 * 8000 * bitrate_code // (22050, 24000, 16000)[rate_code], b"\0")


FLAC_HEADER = FLAC[:42]
AU_RECORDING = b".snd" + struct.pack(">IIIII", 24, 2, 3, RATE_HZ, 1) + b"\1\2"
WAV_OF_NOTHING = wav_header(0, 1, RATE_HZ)
# Small files that would be searched through again and again, or taken apart into very many.
LONG_SEARCHES = {
    "sync codes of FLAC": FLAC_HEADER + b"\xff\xf8" * 2**20,
    "sync codes of FLAC of the other kind": FLAC_HEADER + b"\xff\xf9" * 2**20,
    "beginnings of FLAC": b"fLaC\x00\x00\x00\x22" * 2**17,
    "beginnings of FLAC between two of it": FLAC + b"fLaC\x80\x00\x00\x22" * 2**16 + FLAC,
    "headers of FLAC": FLAC_HEADER * 2**14 + FLAC,
    "lyrics": MP3 + b"LYRICSBEGINLYRICS200" * 2**16,
    "tags before MP3": b"ID3\x04\x00\x00\x00\x00\x00\x00" * 2**16 + MP3,
    "MP3 of two rates in turn": (mpeg_frame(1, 0) + mpeg_frame(1, 1)) * 2**14,
    "recordings of one sample": AU_RECORDING * 2**15,
    "recordings of no sample": WAV_OF_NOTHING * 2**14,
    "chunks behind the samples": encoded("WAV", "PCM_16") + struct.pack("<4sI", b"abcd", 0) * 2**16,
    "chunks before the samples": WAV_OF_NOTHING[:36] + struct.pack("<4sI", b"abcd", 0) * 2**16,
    "RIFF within RIFF": b"RIFF\x00\x00\x00\x00WAVE" * 2**16,
    "pages of Ogg": OPUS * 500,
}


@pytest.mark.parametrize("name", LONG_SEARCHES)
def test_a_file_that_is_made_to_be_searched_for_long_is_read_or_refused_soon(tmp_path: Path, name: str) -> None:
    path = tmp_path / "long"
    path.write_bytes(LONG_SEARCHES[name])
    reason = ""
    began = time.process_time()
    try:
        read_clip(Clip(path), RATE_HZ)
    except AudioError as error:
        reason = str(error)
    # The slowest takes a quarter of it; what takes the square of the file's length takes minutes.
    assert time.process_time() - began < 4
    assert not reason or str(path) in reason


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".g722"])
def test_a_recording_that_is_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(AudioError, match="is no regular file"):
            read_recording(tmp_path / f"{name}{suffix}")


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


@pytest.mark.parametrize("name", FUZZED)
def test_a_file_that_was_cut_anywhere_is_read_or_refused_with_its_name(tmp_path: Path, name: str) -> None:
    content = FUZZED[name]
    # Within its headers, and at its end.
    lengths = [*range(1, 48), *range(48, min(1200, len(content)), 97), *range(len(content) - 20, len(content) + 1, 4)]
    reasons = {}
    for length in lengths:
        path = tmp_path / f"{length}.cut"
        path.write_bytes(content[:length])
        try:
            read_clip(Clip(path), RATE_HZ)
        except AudioError as error:
            reasons[path] = str(error)
    assert reasons
    for path, reason in reasons.items():
        assert str(path) in reason


@pytest.mark.parametrize("suffix", [".raw", ".RAW", ".au", ".snd", ".sd2", ".mp3"])
def test_a_name_that_says_how_a_file_is_coded_is_not_believed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(FLAC)
    assert len(read_clip(Clip(path), RATE_HZ)) == 0.3 * RATE_HZ
    path.write_bytes(bytes(range(256)) * 30)
    with pytest.raises(AudioError, match="no audio, or damaged"):
        read_clip(Clip(path), RATE_HZ)


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
