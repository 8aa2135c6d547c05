"""The length of an audio file is what decodes, not what a header says: for whole files and for segments of them."""

import functools
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from data.audio import Clip, read_clip
from data.containers import AudioError
from data.manifests.manifest import read_manifest
from data.recordings import read_recording

RATE_HZ = 16000

# Name: format and subtype of libsndfile. A file may be repeated, and be cut, in any of them.
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "wav-float": ("WAV", "FLOAT"),
    "wav-adpcm": ("WAV", "IMA_ADPCM"),
    "wav-gsm": ("WAV", "GSM610"),
    "wav-extensible": ("WAVEX", "PCM_24"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "aifc": ("AIFF", "FLOAT"),
    "8svx": ("SVX", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "caf-alac": ("CAF", "ALAC_16"),
    "au": ("AU", "ULAW"),
    "sphere": ("NIST", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "flac-24": ("FLAC", "PCM_24"),
    "ogg-vorbis": ("OGG", "VORBIS"),
    "ogg-opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def speech_like(seconds: float, rate_hz: int = RATE_HZ, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise whose loudness rises and falls, so that encoders with a variable bitrate vary it; float32 [S, C]."""
    num_samples = round(seconds * rate_hz)
    noise = np.random.default_rng(seed).standard_normal((num_samples, channels))
    loudness = 0.1 * np.sin(3 * np.arange(num_samples) / rate_hz) ** 8
    return (noise * loudness[:, None] + 0.001 * noise).astype(np.float32)


def encode(samples: np.ndarray, name: str, rate_hz: int = RATE_HZ) -> bytes:
    container, subtype = FORMATS[name]
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=container, subtype=subtype)
    return file.getvalue()


@functools.cache
def encoded(name: str, seconds: float = 1.0, rate_hz: int = RATE_HZ, seed: int = 0) -> bytes:
    return encode(speech_like(seconds, rate_hz, seed=seed), name, rate_hz)


def decode(content: bytes) -> np.ndarray:
    # Unlike this, soundfile.read seeks first, after which some decoders differ in the last bit.
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        return file.read(file.frames, dtype="float32")


def read(path: Path, start_s: float = 0.0, seconds: float | None = None) -> np.ndarray:
    return read_clip(Clip(path, start_s, seconds), RATE_HZ)


def mp3_frames(content: bytes) -> list[bytes]:
    """The frames of an MP3 of MPEG 2 at 16 kHz, the one with the number of frames first."""
    frames = []
    position = 0
    while position < len(content):
        bitrate_code = content[position + 2] >> 4
        padding = content[position + 2] >> 1 & 1
        kbit_s = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)[bitrate_code]
        size = 72 * kbit_s * 1000 // RATE_HZ + padding
        frames.append(content[position : position + size])
        position += size
    return frames


def ogg_pages(content: bytes) -> list[bytes]:
    starts = []
    position = content.find(b"OggS")
    while position >= 0:
        starts.append(position)
        position = content.find(b"OggS", position + 1)
    return [content[start:stop] for start, stop in zip(starts, [*starts[1:], len(content)], strict=True)]


def flac_claiming(content: bytes, num_samples: int) -> bytes:
    field = int.from_bytes(content[18:26], "big") >> 36 << 36 | num_samples
    return content[:18] + field.to_bytes(8, "big") + content[26:]


# --- whole files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_an_intact_file_decodes_as_its_library_decodes_it(tmp_path: Path, name: str) -> None:
    content = encoded(name)
    path = tmp_path / "a"
    path.write_bytes(content)
    np.testing.assert_array_equal(read(path), decode(content))
    assert read_recording(path).num_samples == len(decode(content))


@pytest.mark.parametrize("name", FORMATS)
def test_files_one_after_the_other_are_read_to_the_end_of_the_last(tmp_path: Path, name: str) -> None:
    parts = [encoded(name, seconds, seed=seed) for seed, seconds in enumerate((0.7, 0.5, 0.9))]
    path = tmp_path / "a"
    path.write_bytes(b"".join(parts))
    whole = np.concatenate([decode(part) for part in parts])
    np.testing.assert_array_equal(read(path), whole)
    assert read_recording(path).seconds == len(whole) / RATE_HZ
    # A segment that lies over the end of the first.
    np.testing.assert_allclose(read(path, 0.5, 0.4), whole[8000:14400], atol=1e-6)


@pytest.mark.parametrize("share", [0.4, 0.95])
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_was_cut_is_refused_and_not_shorter(tmp_path: Path, name: str, share: float) -> None:
    content = encoded(name, 2.0)
    path = tmp_path / "cut"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(AudioError, match=r"breaks off|damaged"):
        read(path)


@pytest.mark.parametrize("name", ["wav", "flac", "ogg-opus", "mp3"])
def test_the_last_of_files_one_after_the_other_may_not_be_cut_either(tmp_path: Path, name: str) -> None:
    content = encoded(name)
    path = tmp_path / "cut"
    path.write_bytes(content + content[: len(content) // 2])
    with pytest.raises(AudioError, match="breaks off"):
        read(path)


@pytest.mark.parametrize("name", ["wav", "flac", "ogg-vorbis", "mp3"])
def test_files_of_unequal_rates_one_after_the_other_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(encoded(name, 0.5) + encoded(name, 0.5, 8000))
    with pytest.raises(AudioError, match="2 recordings of unequal shape"):
        read(path)


@pytest.mark.parametrize("name", ["wav", "w64", "aiff", "flac", "mp3", "ogg-vorbis"])
def test_tags_and_padding_of_players_are_no_audio(tmp_path: Path, name: str) -> None:
    content = encoded(name, 0.5)
    id3 = b"ID3\x04\0\0\0\0\0\x14" + b"x" * 20
    for number, tagged in enumerate((content + b"TAG" + b"x" * 125, content + bytes(100), id3 + content)):
        path = tmp_path / f"a{number}"
        path.write_bytes(tagged)
        np.testing.assert_array_equal(read(path), decode(content))


@given(start=st.integers(0, 40000), length=st.integers(400, 8000))
def test_a_segment_is_the_slice_of_all_streams(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "joined.flac"
    part = encoded("flac")
    if not path.exists():
        path.write_bytes(part * 3)
    whole = np.tile(decode(part), 3)
    np.testing.assert_array_equal(read(path, start / RATE_HZ, length / RATE_HZ), whole[start : start + length])


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"\0\0\0\x20ftypM4A \0\0\0\0", "is MPEG-4 .*convert it"),
        (b"\0\0\0\x18ftyp3gp4\0\0\0\0", "is MPEG-4 .*convert it"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81", "is Matroska or WebM"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "is Windows Media"),
        (b"#!AMR\n\x3c", "is AMR,"),
        (b"\x02#!SILK_V3", "is SILK,"),
        (b"RIFF\0\0\1\0AVI LIST", "is AVI,"),
        (b"\xff\xf1\x60\x40\x04\x3f", "is AAC,"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404", "is a web page"),
        (b"PK\x03\x04\x14\0", "unpack it"),
        (b"\x1f\x8b\x08\0", "unpack it"),
        (b"\0" * 16, "not readable as audio"),
    ],
)
@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.au"])
def test_what_is_not_read_here_is_called_by_its_name(tmp_path: Path, head: bytes, reason: str, name: str) -> None:
    (tmp_path / name).write_bytes(head + bytes(3000))
    with pytest.raises(AudioError, match=reason) as error:
        read(tmp_path / name)
    assert "b'" not in str(error.value)


# --- MP3 ---------------------------------------------------------------------------------------------


@pytest.fixture
def no_xing(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """An MP3 of variable bitrate without a frame that says its length, quiet at first; and what it was made from."""
    samples = speech_like(6.0)[:, 0]
    samples[: 2 * RATE_HZ] *= 0.01
    frames = mp3_frames(encode(samples, "mp3"))
    assert len({len(frame) for frame in frames}) > 2
    path = tmp_path / "no-xing.mp3"
    path.write_bytes(b"".join(frames[1:]))
    return path, samples


def test_an_mp3_of_variable_bitrate_without_a_length_is_read_to_its_end(no_xing: tuple[Path, np.ndarray]) -> None:
    path, samples = no_xing
    waveform = read(path)
    # The decoder guesses from the first frames.
    assert abs(soundfile.info(path).frames - len(samples)) > RATE_HZ
    # A frame before and one behind, in which coders ramp up and down.
    assert len(samples) <= len(waveform) <= len(samples) + 3 * 576
    assert read_recording(path).num_samples == len(waveform)
    # Noise coded with few bits: other stretches of it correlate below 0.1.
    tail = samples[80000:90000]
    delays = range(0, 1200)
    correlations = [np.corrcoef(waveform[80000 + delay : 90000 + delay], tail)[0, 1] for delay in delays]
    assert max(correlations) > 0.7


def test_segments_of_an_mp3_without_a_length_are_those_of_the_whole(no_xing: tuple[Path, np.ndarray]) -> None:
    path, _ = no_xing
    waveform = read(path)
    for start_s in (0.5, 3.25, 5.5):
        start = round(start_s * RATE_HZ)
        # The decoder's last bit depends on where it began.
        np.testing.assert_allclose(read(path, start_s, 0.5), waveform[start : start + 8000], atol=1e-6)


@pytest.mark.parametrize(("rate_hz", "kbps"), [(22_050, 24), (48_000, 320)])
def test_segments_and_pieces_of_an_mp3_do_not_begin_with_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate_hz: int, kbps: int
) -> None:
    """A frame needs bytes of those before it: segments == slices of the whole, which is decoded in one go."""
    noise = 0.1 * np.random.default_rng(0).standard_normal((4 * rate_hz, 2))
    highest = 320 if rate_hz > 24_000 else 160
    level = (highest - kbps) / (highest - 8) * 0.999
    path = tmp_path / "a.mp3"
    soundfile.write(path, noise, rate_hz, format="MP3", compression_level=level, bitrate_mode="CONSTANT")
    recording = read_recording(path)
    (whole,) = recording.read(0, recording.num_samples)
    for start in range(0, 3 * rate_hz, rate_hz // 8 + 1):
        (segment,) = recording.read(start, 500)
        np.testing.assert_allclose(segment, whole[start : start + 500], atol=1e-5)
    # Pieces of long files begin in the middle too.
    monkeypatch.setattr("data.recordings.BLOCK_VALUES", 2 * 7000)
    pieces = list(recording.read(100, len(whole) - 100))
    assert len(pieces) > 9
    np.testing.assert_allclose(np.concatenate(pieces), whole[100:], atol=1e-5)


def test_mp3s_without_a_length_one_after_the_other_are_read_to_the_end(
    no_xing: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    path, _ = no_xing
    num_samples = len(read(path))
    id3 = b"ID3\x04\0\0\0\0\0\x14" + b"x" * 20
    (tmp_path / "twice.mp3").write_bytes(path.read_bytes() + id3 + path.read_bytes())
    # The decoder's delay of 529 samples is dropped once.
    assert len(read(tmp_path / "twice.mp3")) == 2 * num_samples + 529


@pytest.mark.parametrize("before", ["zeros", "a part of a frame", "noise"])
def test_an_mp3_that_does_not_begin_with_a_frame_is_read_to_its_end(
    no_xing: tuple[Path, np.ndarray], tmp_path: Path, before: str
) -> None:
    path, _ = no_xing
    content = path.read_bytes()
    # Each byte below 0xFF, which begins a frame.
    noise = bytes(np.random.default_rng(0).integers(0, 255, 700, np.uint8))
    beginnings = {"zeros": bytes(512), "a part of a frame": mp3_frames(content)[3][9:], "noise": noise}
    (tmp_path / "a.mp3").write_bytes(beginnings[before] + content)
    np.testing.assert_array_equal(read(tmp_path / "a.mp3"), read(path))


def test_an_mp3_of_frames_of_one_size_with_a_tag_among_them_is_read_to_its_end(tmp_path: Path) -> None:
    samples = speech_like(2.0)[:, 0]
    file = io.BytesIO()
    soundfile.write(file, samples, RATE_HZ, format="MP3", bitrate_mode="CONSTANT", compression_level=0.5)
    frames = mp3_frames(file.getvalue())[1:]
    assert len({len(frame) for frame in frames}) == 1
    id3 = b"ID3\x04\0\0\0\0\x02\x14" + b"x" * 276
    (tmp_path / "a.mp3").write_bytes(b"".join(frames[:30]) + id3 + b"".join(frames[30:]))
    assert len(read(tmp_path / "a.mp3")) >= len(samples)


def test_an_mp3_in_a_wav_is_read_to_its_end_whatever_the_header_says(no_xing: tuple[Path, np.ndarray]) -> None:
    path, _ = no_xing
    frames = path.read_bytes()
    shape = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE_HZ, 8000, 1, 0, 12, 1, 2, 576, 1, 0)
    content = b"WAVEfmt " + struct.pack("<I", len(shape)) + shape
    # More samples than the frames hold.
    content += b"fact" + struct.pack("<II", 4, 10 * RATE_HZ) + b"data" + struct.pack("<I", len(frames)) + frames
    wav = path.with_name("a.wav")
    wav.write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content)
    np.testing.assert_array_equal(read(wav), read(path))


def test_an_mp3_that_holds_more_frames_than_it_says_is_read_to_its_end(tmp_path: Path) -> None:
    content = encoded("mp3", 2.0)
    at = content.index(b"Xing") + 8
    (tmp_path / "a.mp3").write_bytes(content[:at] + (9).to_bytes(4, "big") + content[at + 4 :])
    assert len(read(tmp_path / "a.mp3")) >= 2 * RATE_HZ


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:2000] + b"\0" * 3000 + content[5000:], "no MPEG frame begins"),
        (lambda content: content[:-5], "breaks off within an MPEG frame"),
        (lambda content: content[:2] + bytes([content[2] & 0x0F]) + content[3:], "free bitrate"),
    ],
)
def test_a_damaged_mp3_is_refused(tmp_path: Path, damage, reason: str) -> None:
    (tmp_path / "a.mp3").write_bytes(damage(encoded("mp3", 2.0)))
    with pytest.raises(AudioError, match=reason):
        read(tmp_path / "a.mp3")


# --- headers of writers to a pipe ----------------------------------------------------------------------


LENGTH_FIELDS = {
    "wav": (b"data", 4, "<I"),
    "wav-float": (b"data", 4, "<I"),
    "w64": (b"data", 16, "<Q"),
    "aiff": (b"SSND", 4, ">I"),
    "8svx": (b"BODY", 4, ">I"),
    "caf": (b"data", 4, ">Q"),
    "au": (b".snd", 8, ">I"),
}


def with_length(content: bytes, name: str, length: int) -> bytes:
    chunk, distance, layout = LENGTH_FIELDS[name]
    at = content.index(chunk) + distance
    field = struct.pack(layout, length)
    return content[:at] + field + content[at + len(field) :]


@pytest.mark.parametrize("name", LENGTH_FIELDS)
def test_a_header_written_before_the_samples_is_read_to_the_end_of_the_file(tmp_path: Path, name: str) -> None:
    content = encoded(name)
    layout = LENGTH_FIELDS[name][2]
    ones = 2 ** (8 * struct.calcsize(layout)) - 1
    for number, length in enumerate((0, ones)):
        path = tmp_path / f"a{number}"
        path.write_bytes(with_length(content, name, length))
        np.testing.assert_array_equal(read(path), decode(content))
        np.testing.assert_array_equal(read(path, 0.25, 0.5), decode(content)[4000:12000])


def test_a_wave64_that_ffmpeg_wrote_to_a_pipe_is_read(tmp_path: Path) -> None:
    content = encoded("w64")
    (tmp_path / "a.w64").write_bytes(with_length(content, "w64", 2**63 - 1))
    np.testing.assert_array_equal(read(tmp_path / "a.w64"), decode(content))


@pytest.mark.parametrize("length", [0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF - 36])
def test_lengths_that_sox_and_arecord_write_to_a_pipe_are_read(tmp_path: Path, length: int) -> None:
    content = encoded("wav")
    (tmp_path / "a.wav").write_bytes(with_length(content, "wav", length))
    np.testing.assert_array_equal(read(tmp_path / "a.wav"), decode(content))


@pytest.mark.parametrize("name", LENGTH_FIELDS)
def test_a_header_that_says_less_than_the_file_holds_is_refused(tmp_path: Path, name: str) -> None:
    content = encoded(name)
    (tmp_path / "a").write_bytes(with_length(content, name, 9000))
    with pytest.raises(AudioError, match=r"save it again"):
        read(tmp_path / "a")


@pytest.mark.parametrize("num_samples", [0, 100, 15999])
def test_a_flac_is_read_to_its_last_frame_whatever_its_header_says(tmp_path: Path, num_samples: int) -> None:
    content = encoded("flac")
    (tmp_path / "a.flac").write_bytes(flac_claiming(content, num_samples))
    np.testing.assert_array_equal(read(tmp_path / "a.flac"), decode(content))
    assert read_recording(tmp_path / "a.flac").seconds == 1.0


@pytest.mark.parametrize(
    "extra", [b"LIST\x0a\0\0\0INFOxxxxxx", b"LIST\x0b\0\0\0INFOxxxxxxx", b"LIST\xff\0\0\0INFO", b"id3 \0\0\0\0"]
)
@pytest.mark.parametrize("num_samples", [16000, 15999])
def test_chunks_behind_the_samples_of_a_wav_are_no_audio(tmp_path: Path, extra: bytes, num_samples: int) -> None:
    samples = speech_like(1.0)[:num_samples]
    file = io.BytesIO()
    soundfile.write(file, samples, RATE_HZ, format="WAV", subtype="PCM_U8")
    content = file.getvalue()
    for number, whole in enumerate((content + extra, content.rstrip(b"\0") + extra)):
        path = tmp_path / f"a{number}"
        path.write_bytes(whole)
        assert len(read(path)) == num_samples


@pytest.mark.parametrize("extra", [b"", b"LIST\x0a\0\0\0INFOxxxxxx"])
def test_a_wav_without_samples_says_so(tmp_path: Path, extra: bytes) -> None:
    content = encode(np.zeros((0, 1)), "wav")
    (tmp_path / "a.wav").write_bytes(content + extra)
    with pytest.raises(AudioError, match="holds no samples"):
        read(tmp_path / "a.wav")


# --- Ogg ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ogg-vorbis", "ogg-opus"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda pages: pages[:-1], "not marked as the end"),
        (lambda pages: [*pages[:-2], pages[-1]], "lacks Ogg pages"),
        (lambda pages: [*pages[:-1], pages[-1][:-9] + b"damaged!!"], "does not have its checksum"),
        (lambda pages: [*pages[:-1], b"between pages", pages[-1]], "no Ogg page begins"),
        (lambda pages: [*pages[:-1], pages[-1][:20]], "breaks off within an Ogg page"),
    ],
)
def test_an_ogg_that_lacks_a_part_is_refused(tmp_path: Path, name: str, damage, reason: str) -> None:
    pages = ogg_pages(encoded(name, 4.5))
    assert len(pages) > 4
    (tmp_path / "a.ogg").write_bytes(b"".join(damage(pages)))
    with pytest.raises(AudioError, match=reason):
        read(tmp_path / "a.ogg")


# --- manifests ---------------------------------------------------------------------------------------


def test_a_manifest_records_true_lengths_alone(tmp_path: Path) -> None:
    wav = encoded("wav")
    files = {
        "whole.wav": wav,
        "cut.wav": wav[: len(wav) // 2],
        "pipe.wav": with_length(wav, "wav", 0),
        "joined.flac": encoded("flac") * 2,
        "cut.opus": encoded("ogg-opus", 3.0)[:-100],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    rows: list[dict] = [{"audio": name, "text": "t"} for name in files]
    # Lies in the second of two streams.
    rows.append({"audio": "joined.flac", "text": "t", "start": 1.25, "duration": 0.5})
    # What is left of it would hold this segment.
    rows.append({"audio": "cut.wav", "text": "t", "start": 0.1, "duration": 0.2})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    utterances, rejected = read_manifest(tmp_path / "m.jsonl")
    assert [utterance.line for utterance in utterances] == [1, 3, 4, 6]
    assert [row.line for row in rejected] == [2, 5, 7]
    assert all("breaks off" in row.reason for row in rejected)


def test_a_file_that_was_replaced_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded("wav")[:-9000])
    with pytest.raises(AudioError, match="breaks off"):
        read_recording(path)
    path.write_bytes(encoded("wav"))
    assert read_recording(path).seconds == 1.0
