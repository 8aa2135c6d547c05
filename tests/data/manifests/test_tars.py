"""WebDataset tars from elsewhere, as the library webdataset writes them: whole members are the recordings."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset

from data.audio import Utterance, read_audio
from data.corpora.folder import FolderConfig
from data.corpora.prepare import prepare
from data.errors import DataError
from data.manifests.manifest import manifest_files, read_manifest

RATE_HZ = 16000
NOISE = np.random.default_rng(0).normal(0, 0.1, (8, RATE_HZ)).astype(np.float32)


def audio(number: int, kind: str = "flac", seconds: float = 1.0) -> bytes:
    stream = io.BytesIO()
    samples = np.resize(NOISE[number], round(seconds * RATE_HZ))
    subtype = {"mp3": "MPEG_LAYER_III", "opus": "OPUS"}.get(kind)
    soundfile.write(stream, samples, RATE_HZ, format={"opus": "OGG"}.get(kind, kind.upper()), subtype=subtype)
    return stream.getvalue()


def write_tar(path: Path, *samples: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # encoder=False: these members are bytes already.
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for sample in samples:
            tar.write(sample)
    return path


def read(path: Path) -> tuple[list[Utterance], list[str]]:
    utterances, rejected = read_manifest(path)
    return utterances, [row.reason for row in rejected]


@pytest.mark.parametrize("kind", ["flac", "wav", "mp3", "opus"])
def test_recordings_of_every_usual_kind_are_read_with_the_text_beside_them(tmp_path: Path, kind: str) -> None:
    tar = write_tar(
        tmp_path / "a.tar",
        {"__key__": "speaker1/u1", kind: audio(0, kind), "txt": b"HELLO there\n"},
        {"__key__": "speaker1/u2", kind: audio(1, kind), "json": json.dumps({"text": "zwei", "speaker": 7}).encode()},
    )
    for place in (tar, tmp_path):
        utterances, reasons = read(place)
        assert reasons == []
        assert [(row.key, row.text, row.speaker) for row in utterances] == [
            ("speaker1_u1", "HELLO there", ""),
            ("speaker1_u2", "zwei", "7"),
        ]
        for number, row in enumerate(utterances):
            samples, _ = soundfile.read(io.BytesIO(audio(number, kind)), dtype="float32")
            # The decoder of MP3 rounds its last bit as it likes.
            np.testing.assert_allclose(read_audio(row, RATE_HZ), samples, atol=1e-6)


def test_splits_are_what_tars_or_their_folders_are_called(tmp_path: Path) -> None:
    sample = {"__key__": "u", "flac": audio(0), "txt": b"a"}
    for name in ("train-000000.tar", "train-000001.tar", "validation_0.tar", "corpus-0.tar"):
        write_tar(tmp_path / "flat" / name, sample)
    assert [row.split for row in read(tmp_path / "flat")[0]] == ["", "train", "train", "validation"]
    for split in ("dev", "train"):
        write_tar(tmp_path / "deep" / split / "000.tar", sample)
    utterances, _ = read(tmp_path / "deep")
    assert [row.split for row in utterances] == ["dev", "train"]
    # A key that every tar counts from the beginning is no reason to lose a recording.
    assert len({row.key for row in utterances}) == 2


def test_what_a_row_says_of_a_longer_recording_is_not_read_and_its_length_is_compared(tmp_path: Path) -> None:
    times = {"start": 812.5, "end": 813.5, "begin_ms": 812500, "wav": "talk/long.wav"}
    write_tar(
        tmp_path / "a.tar",
        {"__key__": "piece", "flac": audio(0), "json": json.dumps({"text": "a", **times}).encode()},
        {"__key__": "rounded", "flac": audio(1), "json": json.dumps({"text": "b", "duration": 1.2}).encode()},
        {"__key__": "part", "flac": audio(2, seconds=4), "json": json.dumps({"text": "c", "duration": 1}).encode()},
    )
    utterances, reasons = read(tmp_path)
    assert reasons == []
    assert len(read_audio(utterances[0], RATE_HZ)) == len(read_audio(utterances[1], RATE_HZ)) == RATE_HZ
    with pytest.raises(DataError, match=r"part\.flac in .*a\.tar lasts 4\.000 s, its row says 1 s"):
        read_audio(utterances[2], RATE_HZ)


def test_rows_without_a_recording_or_a_text_are_rejected_with_their_tar(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(
        tmp_path / "a.tar",
        {"__key__": "whole", "flac": audio(0), "txt": b"a", "pyd": b"\x80\x04.", "cls": b"3"},
        {"__key__": "mute", "txt": b"b"},
        {"__key__": "silent", "flac": audio(0)},
        {"__key__": "latin", "flac": audio(0), "txt": "é".encode("latin-1")},
        {"__key__": "torn", "flac": audio(0), "json": b"{"},
        {"__key__": "both", "flac": audio(0), "txt": b"one", "json": b'{"text": "two"}'},
        {"__key__": "features", "npy": b"\0"},
    )
    utterances, reasons = read(tmp_path)
    assert [row.key for row in utterances] == ["whole"]
    assert all(reason.startswith("a.tar: ") for reason in reasons)
    for reason, seen in zip(
        reasons,
        ["names no audio", "text is empty", "not UTF-8", "torn.json is not JSON", "both give the text"],
        strict=True,
    ):
        assert seen in reason
    assert "these endings are not read: cls, npy, pyd" in caplog.text


def test_members_with_longer_names_are_rows_too(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        {"__key__": "u1", "audio.flac": audio(0), "text.txt": b"one", "meta.json": b'{"speaker": "a"}'},
        {"__key__": "u2.1", "flac": audio(1), "txt": b"two"},
        # Keys with dots, as WebDataset takes them apart: u3 with 1.flac and 2.flac.
        {"__key__": "u3", "1.flac": audio(2), "1.txt": b"three", "2.flac": audio(3), "2.txt": b"four"},
        {"__key__": "u4", "flac": audio(4), "txt": b"five", "words.json": b"[1, 2]", "noisy.flac": audio(5)},
        {"__key__": "u5", "flac": audio(6), "raw.txt": b"Six.", "norm.txt": b"six"},
    )
    utterances, reasons = read(tmp_path)
    assert [(row.text, row.speaker) for row in utterances] == [
        *(("one", "a"), ("two", ""), ("three", ""), ("four", ""), ("five", "")),
    ]
    assert reasons == ["a.tar: its txt is there under several names, raw.txt is one of them"]
    for number, row in enumerate(utterances):
        samples, _ = soundfile.read(io.BytesIO(audio(number)), dtype="float32")
        np.testing.assert_array_equal(read_audio(row, RATE_HZ), samples)


def test_a_tar_that_breaks_off_gives_its_whole_rows_and_says_so(tmp_path: Path) -> None:
    samples = [{"__key__": f"u{number}", "txt": b"a", "flac": audio(number)} for number in range(4)]
    content = write_tar(tmp_path / "a.tar", *samples).read_bytes()
    # The blocks of zeros that end a tar, and nothing else, are gone.
    without_end = -(-len(content.rstrip(b"\0")) // 512) * 512
    for keep in (len(content) // 2, without_end):
        (tmp_path / "a.tar").write_bytes(content[:keep])
        utterances, reasons = read(tmp_path)
        assert 0 < len(utterances) <= 4
        assert "breaks off" in reasons[-1]
    assert len(utterances) == 4


def test_a_compressed_tar_says_how_to_unpack_it(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("u.txt"))
    _, reasons = read(tmp_path)
    assert "compressed with gzip" in reasons[0]
    assert "gunzip" in reasons[0]


def test_the_shards_of_tars_are_reproduced_and_a_changed_tar_is_noticed(tmp_path: Path) -> None:
    samples = [
        {"__key__": f"u{number}", "flac": audio(number), "txt": f"text {number}".encode()} for number in range(4)
    ]
    tar = write_tar(tmp_path / "tars" / "train-0.tar", *samples)
    config = FolderConfig(manifest=tmp_path / "tars")
    first = prepare(config, tmp_path / "out", seed=1, sample_rate_hz=RATE_HZ, workers=2)
    assert first.used == 4
    assert prepare(config, tmp_path / "out", seed=1, sample_rate_hz=RATE_HZ).kept == ("train",)
    assert manifest_files(tmp_path / "tars").containers == [tar]
    samples[0]["flac"] = audio(7)
    write_tar(tar, *samples)
    with pytest.raises(DataError, match="recordings changed"):
        prepare(config, tmp_path / "out", seed=1, sample_rate_hz=RATE_HZ)


def test_a_broken_member_is_rejected_by_its_name_and_its_tar(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "tars" / "train-0.tar",
        {"__key__": "good", "flac": audio(0), "txt": b"a"},
        {"__key__": "bad", "flac": audio(1)[:2000], "txt": b"b"},
    )
    report = prepare(FolderConfig(manifest=tar), tmp_path / "out", seed=1, sample_rate_hz=RATE_HZ)
    assert report.used == 1
    assert f"bad.flac in {tar} breaks off" in report.rejected[0].reason
    assert "chorus-" not in report.rejected[0].reason
