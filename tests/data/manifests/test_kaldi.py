"""Kaldi data directories as manifests."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.audio import Clip, Utterance, read_audio
from data.errors import DataError
from data.manifests.manifest import manifest_files, read_manifest

RATE_HZ = 16000


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).normal(0, 0.1, (2 * RATE_HZ, 2))
    soundfile.write(tmp_path / "a.wav", noise[:, 0], RATE_HZ)
    soundfile.write(tmp_path / "call 1.flac", noise, RATE_HZ)
    return tmp_path


def write(directory: Path, **files: str | bytes) -> Path:
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        path = directory / name.replace("wav_scp", "wav.scp")
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return directory


def test_recordings_without_segments_are_utterances(corpus: Path) -> None:
    directory = write(
        corpus / "data",
        wav_scp=f"utt1 {corpus}/a.wav\nutt2\t../call 1.flac\n\n",
        text="utt1 hello  World\nutt2\tзачем\r\n",
        utt2spk="utt1 ann\nutt2 bob\n",
        utt2lang="utt2 ru\n",
        spk2utt="ann utt1\nbob utt2\n",
    )
    utterances, rejected = read_manifest(directory)
    assert rejected == []
    assert utterances == [
        Utterance("utt1", (Clip(corpus / "a.wav"),), "hello  World", "", "ann", "", line=1),
        Utterance("utt2", (Clip(directory / "../call 1.flac"),), "зачем", "", "bob", "ru", line=2),
    ]
    names = [path.name for path in manifest_files(directory).lists]
    assert names == ["wav.scp", "text", "utt2spk", "utt2lang"]


def test_segments_are_read_by_their_offset(corpus: Path) -> None:
    directory = write(
        corpus / "data",
        wav_scp="r1 ../a.wav\nr2 ../call 1.flac\n",
        segments="u1 r1 0.50 1.25\nu2 r1 1.5 -1\nu3 r2 0 1 1\nu4 r2 0 1 A\n",
        text="u1 one\nu2 two\nu3 three\nu4 four\n",
    )
    utterances, rejected = read_manifest(directory)
    assert rejected == []
    clips = [utterance.clips[0] for utterance in utterances]
    assert [(clip.start_s, clip.seconds, clip.channel) for clip in clips] == [
        (0.5, 0.75, None),
        (1.5, None, None),
        (0.0, 1.0, 1),
        (0.0, 1.0, 0),
    ]
    whole, _ = soundfile.read(corpus / "a.wav", dtype="float32")
    np.testing.assert_array_equal(read_audio(utterances[0], RATE_HZ), whole[8000:20000])


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"wav_scp": "bad sph2pipe -f wav x.sph |\n"}, "wav.scp: wav.scp names a command, which is not run (sph2pipe"),
        ({"wav_scp": "bad sox  -r 16000 --null -t wav - synth 1s sine 300 |\n"}, "a command"),
        ({"wav_scp": "bad cat x.wav |  \n"}, "a command"),
        ({"wav_scp": "bad -\n"}, "a stream"),
        ({"wav_scp": "bad foo.ark:123\n"}, "an archive"),
        ({"wav_scp": "bad gone.wav\n"}, "no audio file"),
        ({"wav_scp": "bad\n"}, "names no audio"),
        ({"wav_scp": "bad ../a.wav\n", "text": "good t\n"}, "text is empty"),
        ({"wav_scp": "bad ../a.wav\n", "text": "good t\nbad\n"}, "text is empty"),
        ({"wav_scp": "bad ../a.wav\n", "text": b"good t\nbad caf\xe9\n"}, "not UTF-8"),
        ({"wav_scp": "", "text": "good t\nbad t\n"}, "text: bad has a text and is not in wav.scp"),
        ({"wav_scp": "good ../a.wav\n"}, "wav.scp: key good is already that of line 1"),
        ({"wav_scp": "", "text": "good t\ngood u\n"}, "text: key good is already that of line 1"),
        (
            {"wav_scp": "", "segments": "good good 0 1\nbad gone 0 1\n"},
            "segments: its recording gone is not in wav.scp",
        ),
        ({"wav_scp": "", "segments": "good good 0 1\nbad good 0\n"}, "not 3 fields"),
        ({"wav_scp": "", "segments": "good good 0 1\nbad good 1 0.5\n"}, "is not behind its start"),
        ({"wav_scp": "", "segments": "good good 0 1\nbad good x y\n"}, "expected a number"),
        ({"wav_scp": "", "segments": "good good 0 1\nbad good 0 1 C\n"}, "column channel holds 'C'"),
    ],
)
def test_a_line_that_cannot_be_used_is_rejected_with_its_file_and_reason(
    corpus: Path, files: dict, reason: str
) -> None:
    text = files.pop(
        "text", "good t\nbad t\n" if "segments" in files or files["wav_scp"].startswith("bad") else "good t\n"
    )
    files["wav_scp"] = "good ../a.wav\n" + files["wav_scp"]
    utterances, rejected = read_manifest(write(corpus / "data", text=text, **files))
    assert [utterance.key for utterance in utterances] == ["good"]
    assert reason in rejected[0].reason
    assert len(rejected) == 1


def test_a_folder_of_directories_is_one_corpus_with_their_names_as_splits(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "dev", "test"):
        write(corpus / split, wav_scp=f"{split}-1 ../a.wav\n", text=f"{split}-1 text of {split}\n")
    write(corpus / "train", cmvn_stats="x\n", utt2dur="train-1 2.0\n")
    write(corpus / "lang", **{"phones.txt": "a 1\n"})
    with caplog.at_level(logging.WARNING):
        utterances, rejected = read_manifest(corpus)
    assert rejected == []
    assert [(row.key, row.split) for row in utterances] == [("dev-1", "dev"), ("test-1", "test"), ("train-1", "train")]
    assert [record.getMessage() for record in caplog.records] == [
        f"{corpus / 'train'}: these files are not read: cmvn_stats."
    ]


def test_a_folder_without_wav_scp_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither it nor a folder in it has Kaldi's wav\.scp"):
        read_manifest(tmp_path)


def test_a_name_that_is_not_utf_8_is_read(corpus: Path) -> None:
    try:
        (corpus / "a.wav").rename(corpus / os.fsdecode(b"a\xe9.wav"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    utterances, _ = read_manifest(write(corpus / "data", wav_scp=b"u ../a\xe9.wav\n", text="u t\n"))
    assert [utterance.key for utterance in utterances] == ["u"]
