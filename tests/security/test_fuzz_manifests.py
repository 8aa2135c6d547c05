"""Lists of a corpus with anything in their rows: each row is used, or rejected with a reason.

    for every change of every row: read_manifest ends with utterances and rejected rows in UTF-8, or a DataError

`make fuzz` tries many more changes than the default run, and other ones each time.
"""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.manifests.manifest import read_manifest

FUZZ = settings(
    max_examples=2 * int(os.environ.get("CHORUS_FUZZ_EXAMPLES", "25")),
    derandomize="CHORUS_FUZZ_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
ODD_VALUES = (
    *(None, True, 0, -1, 1.5, 1e308, -1e308, float("nan"), float("inf"), 10**300),
    *("", "a", "1", "nan", "\ud800", "a\0b", "../../x", "/etc/passwd", "-", "cat x |", "http://x/y", "x" * 70_000),
)
VALUES = st.recursive(
    st.sampled_from(ODD_VALUES),
    lambda values: st.lists(values, max_size=2) | st.dictionaries(st.sampled_from("ab"), values, max_size=2),
    max_leaves=4,
)
SOURCE = {"type": "file", "channels": [0], "source": "a.wav"}
RECORDING = {"id": "r", "sources": [SOURCE], "sampling_rate": 16000, "num_samples": 16000, "duration": 1.0}
SUPERVISION = {"id": "s", "recording_id": "r", "start": 0, "duration": 1.0, "channel": 0, "text": "hi"}
CUT = {
    **{"id": "a", "start": 0, "duration": 1.0, "channel": 0, "type": "MonoCut"},
    **{"supervisions": [SUPERVISION], "recording": RECORDING},
}
NEMO_ROW = {"audio_filepath": "audio_0.wav", "text": "hi", "offset": 0, "duration": 1, "shard_id": 0}
ROW = {
    **{"audio": "a.wav", "text": "x", "start": 0, "end": 1, "channel": 0},
    **{"speaker": "s", "language": "l", "key": "k", "split": "train"},
}


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def write_list(folder: Path, row: str) -> Path:
    (folder / "m.jsonl").write_text(row)
    return folder / "m.jsonl"


def write_metadata(folder: Path, row: str) -> Path:
    (folder / "metadata.jsonl").write_text(row)
    return folder


def write_shar(folder: Path, row: str) -> Path:
    (folder / "cuts.000000.jsonl.gz").write_bytes(gzip.compress(row.encode()))
    write_tar(folder / "recording.000000.tar", {"a.wav": b"RIFF"})
    return folder


def write_nemo(folder: Path, row: str) -> Path:
    (folder / "tarred_audio_manifest.json").write_text(row)
    write_tar(folder / "audio_0.tar", {"audio_0.wav": b"RIFF"})
    return folder


def write_webdataset(folder: Path, row: str) -> Path:
    write_tar(folder / "x.tar", {"k.json": row.encode(), "k.wav": b"RIFF"})
    return folder


def write_supervisions(folder: Path, row: str) -> Path:
    (folder / "recordings.jsonl").write_text(json.dumps(RECORDING))
    (folder / "supervisions.jsonl").write_text(row)
    return folder / "supervisions.jsonl"


KINDS: dict[str, tuple[Callable[[Path, str], Path], dict[str, Any]]] = {
    "a list": (write_list, ROW),
    "cuts": (write_list, CUT),
    "supervisions": (write_supervisions, SUPERVISION),
    "metadata": (write_metadata, {"file_name": "a.wav", "text": "x"}),
    "Shar": (write_shar, CUT),
    "NeMo": (write_nemo, NEMO_ROW),
    "WebDataset": (write_webdataset, ROW),
}


def changed(row: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """A row with odd values in some places, at any depth."""
    row = json.loads(json.dumps(row))
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = row
        while place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
                place = place[key]
                continue
            place[key] = data.draw(VALUES)
            break
    return row


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_anything_is_used_or_rejected(tmp_path: Path, kind: str) -> None:
    write, row = KINDS[kind]

    @FUZZ
    @given(st.data())
    def check(data: st.DataObject) -> None:
        place = write(tmp_path, json.dumps(changed(row, data)))
        try:
            utterances, rejected = read_manifest(place)
        except DataError:
            return
        assert utterances or rejected
        for utterance in utterances:
            for text in (utterance.key, utterance.text, utterance.split, utterance.speaker, utterance.language):
                text.encode()
        for line in rejected:
            (line.reason + line.key + line.path).encode()

    check()
