"""Manifests of lhotse: cuts, and supervisions with the recordings beside them, as lhotse 1.33 writes them."""

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.audio import Clip, read_audio
from data.errors import DataError
from data.manifests.manifest import manifest_files, read_manifest

RATE_HZ = 16000


def recording(name: str, channels: list[int], **fields) -> dict:
    return {
        "id": name,
        "sources": [{"type": "file", "channels": channels, "source": f"{name}.wav"}],
        "sampling_rate": RATE_HZ,
        "num_samples": 64000,
        "duration": 4.0,
        "channel_ids": channels,
        **fields,
    }


def supervision(name: str, of: str, start: float, duration: float, **fields) -> dict:
    return {"id": name, "recording_id": of, "start": start, "duration": duration, "channel": 0, **fields}


def cut(name: str, start: float, duration: float, supervisions: list[dict], **fields) -> dict:
    return {
        "id": name,
        "start": start,
        "duration": duration,
        "channel": 0,
        "supervisions": supervisions,
        "recording": recording("long", [0]),
        "type": "MonoCut",
        **fields,
    }


SUPERVISIONS = [
    supervision("s1", "long", 0.5, 2.1, text="HELLO WORLD", language="English", speaker="a", custom={"snr": 1}),
    supervision("s2", "stereo", 0.0, 2.0, channel=1, text="RIGHT"),
    supervision("s3", "stereo", 1.0, 2.0, channel=[0, 1], text="BOTH"),
    supervision("s4", "long", 3, 2.0, text="BEYOND"),
    supervision("s5", "gone", 0, 2.0, text="OF NOTHING"),
    supervision("s6", "long", 1, 2.0),
    supervision("s7", "long", 1, 2.0, channel=3, text="OF NO CHANNEL"),
]
USED = [
    ("s1", "HELLO WORLD", ("long.wav", 0.5, 2.1, None), "a", "English"),
    ("s2", "RIGHT", ("stereo.wav", 0.0, 2.0, 1), "", ""),
    ("s3", "BOTH", ("stereo.wav", 1.0, 2.0, None), "", ""),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).normal(0, 0.1, (4 * RATE_HZ, 2))
    soundfile.write(tmp_path / "long.wav", noise[:, 0], RATE_HZ)
    soundfile.write(tmp_path / "stereo.wav", noise, RATE_HZ)
    return tmp_path


def write(path: Path, rows: list) -> Path:
    content = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".json":
        content = json.dumps(rows, indent=2)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def used(folder: Path, path: Path) -> list[tuple]:
    rows = []
    for row in read_manifest(path)[0]:
        clip = row.clips[0]
        place = (str(clip.path.relative_to(folder)), clip.start_s, clip.seconds, clip.channel)
        rows.append((row.key, row.text, place, row.speaker, row.language))
    return rows


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl", ".json"])
def test_supervisions_are_read_with_the_recordings_beside_them(
    folder: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    recordings = write(folder / f"x_recordings_train{suffix}", [recording("long", [0]), recording("stereo", [0, 1])])
    path = write(folder / f"x_supervisions_train{suffix}", SUPERVISIONS)
    with caplog.at_level(logging.WARNING):
        assert used(folder, path) == USED
    assert [record.getMessage().count("not read: custom.") for record in caplog.records] == [1]
    assert manifest_files(path).lists == [path, recordings]
    reasons = [row.reason for row in read_manifest(path)[1]]
    for reason, words in zip(reasons, ("end 5 s", "'gone' is not in x_rec", "is empty", "channel [3]"), strict=True):
        assert words in reason


def test_supervisions_of_a_cut_count_from_its_start(folder: Path) -> None:
    rows = [
        cut("c1", 0.0, 4.0, [SUPERVISIONS[0], SUPERVISIONS[3]]),
        cut("c2", 0.7, 1.5, [supervision("t1", "long", 0.1, 0.2, text="LATER"), supervision("t2", "long", -0.2, 1.0)]),
        cut("c3", 1.5, 1.0, []),
    ]
    path = write(folder / "cuts.jsonl.gz", rows)
    assert used(folder, path) == [USED[0], ("t1", "LATER", ("long.wav", 0.8, 0.2, None), "", "")]
    utterances, rejected = read_manifest(path, untranscribed=True)
    assert [row.key for row in utterances] == ["s1", "t1", "t2", "c3"]
    assert utterances[-1].clips == (Clip(folder / "long.wav", 1.5, 1.0),)
    # Rows in: two supervisions of the first cut, two of the second, the third without any.
    assert len(utterances) + len(rejected) == 5
    whole, _ = soundfile.read(folder / "long.wav", dtype="float32")
    np.testing.assert_array_equal(read_audio(utterances[1], RATE_HZ), whole[12800:16000])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"type": "MixedCut", "tracks": []}, "a MixedCut"),
        ({"type": "PaddingCut"}, "a PaddingCut"),
        ({"recording": None}, "without a recording"),
        ({"recording": recording("long", [0], transforms=[{"name": "Speed"}])}, "transforms"),
        (
            {"recording": recording("x", [0], sources=[{"type": "command", "channels": [0], "source": "sph2pipe x"}])},
            "is a command",
        ),
        ({"recording": recording("x", [0], sources=[{"type": "url", "channels": [0], "source": "http://x"}])}, "a url"),
        ({"recording": []}, "without a recording"),
        ({"recording": {"sources": 5}}, "not one of lhotse's cuts"),
        ({"start": "soon"}, "not one of lhotse's cuts"),
        ({"supervisions": [5]}, "not one of lhotse's cuts"),
        ({"recording": recording("long", [0], sources=[])}, "in no file"),
        ({"recording": recording("gone", [0])}, "no audio file"),
    ],
)
def test_what_would_need_more_than_reading_a_file_is_rejected_by_its_reason(
    folder: Path, row: dict, reason: str
) -> None:
    good = cut("c1", 0.0, 4.0, [SUPERVISIONS[0]])
    path = write(folder / "cuts.jsonl", [good, cut("c2", 0.0, 4.0, [SUPERVISIONS[5] | {"text": "T"}]) | row])
    utterances, rejected = read_manifest(path)
    assert [utterance.key for utterance in utterances] == ["s1"]
    assert [row.line for row in rejected] == [2]
    assert reason in rejected[0].reason


def test_supervisions_without_recordings_and_recordings_alone_are_refused_with_what_to_name(folder: Path) -> None:
    path = write(folder / "supervisions.jsonl", SUPERVISIONS)
    with pytest.raises(DataError, match="that of their recordings is not beside it"):
        read_manifest(path)
    path = write(folder / "recordings.jsonl", [recording("long", [0])])
    with pytest.raises(DataError, match="name the supervisions or cuts"):
        read_manifest(path)
    (folder / "segments.jsonl").write_bytes((folder / "supervisions.jsonl").read_bytes())
    with pytest.raises(DataError, match="that of their recordings is not beside it"):
        read_manifest(folder / "segments.jsonl")


def test_paths_count_from_the_working_folder_too(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path_factory.mktemp("elsewhere") / "cuts.jsonl", [cut("c1", 0.0, 4.0, [SUPERVISIONS[0]])])
    assert read_manifest(path)[0] == []
    monkeypatch.chdir(folder)
    assert read_manifest(path)[0][0].clips[0].path == folder / "long.wav"


@pytest.mark.parametrize(
    "change", [{"channel": []}, {"channel": [[]]}, {"start": 10**400}, {"start": None}, {"id": None}]
)
def test_a_supervision_of_anything_is_a_rejected_row_and_no_end_of_the_others(folder: Path, change: dict) -> None:
    good = cut("c1", 0.0, 4.0, [SUPERVISIONS[0]])
    path = write(folder / "cuts.jsonl", [good, cut("c2", 0.0, 4.0, [SUPERVISIONS[1] | change])])
    utterances, rejected = read_manifest(path)
    assert utterances[0].key == "s1"
    assert len(utterances) + len(rejected) == 2


def test_recordings_without_a_name_are_a_rejected_row(folder: Path) -> None:
    recordings = [recording("long", [0]), {"a": 1}, {"a": 2}]
    write(folder / "recordings.jsonl", recordings)
    utterances, rejected = read_manifest(write(folder / "supervisions.jsonl", [SUPERVISIONS[0]]))
    assert len(utterances) == 1
    assert ["recording None is already" in row.reason for row in rejected] == [True]
