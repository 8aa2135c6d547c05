"""Lists of which no row can be used: each is counted, and memory does not grow with their number."""

import gc
import json
from pathlib import Path

import pytest

from data import rejected_rows
from data.audio import RejectedRow
from data.corpora import published
from data.corpora.gigaspeech import GigaSpeechConfig, select
from data.corpora.rejections import describe_rejections
from data.errors import DataError
from data.manifests import manifest
from data.manifests.manifest import read_manifest

MAX_HELD = 100
NUM_ROWS = 2000
SEGMENT = {"sid": "good", "begin_time": 0.0, "end_time": 1.0, "text_tn": "WORDS", "subsets": ["{TEST}"]}


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejected_rows, "MAX_HELD", MAX_HELD)


def held_rows() -> int:
    """Rejected rows in the memory of this process."""
    return sum(type(value) is RejectedRow for value in gc.get_objects())


def write_segments(root: Path, num_rows: int) -> GigaSpeechConfig:
    segments = [*({} for _ in range(num_rows)), SEGMENT]
    audios = [{"path": "a.opus", "segments": segments}]
    (root / "GigaSpeech.json").write_text(json.dumps({"audios": audios}))
    return GigaSpeechConfig(root=root)


def test_segments_that_nobody_can_use_are_counted_and_not_held(tmp_path: Path) -> None:
    selection = select(write_segments(tmp_path, NUM_ROWS), 1)
    assert held_rows() <= MAX_HELD
    assert len(selection.rejected) == NUM_ROWS
    assert describe_rejections(selection.rejected).startswith(f"{NUM_ROWS} rejected: {NUM_ROWS} ")


def test_rows_of_a_manifest_that_nobody_can_use_are_counted_and_not_held(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"audio": "/none", "text": "a"}\n' + '{"a": 1}\n' * NUM_ROWS)
    utterances, rejected = read_manifest(tmp_path / "list.jsonl")
    assert held_rows() <= MAX_HELD
    assert (len(utterances), len(rejected)) == (0, NUM_ROWS + 1)
    assert [row.line for row in rejected] == list(range(1, NUM_ROWS + 2))


def test_lists_with_more_rows_than_any_corpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "MAX_ROWS", 50)
    assert len(select(write_segments(tmp_path, 49), 1).rejected) == 49
    with pytest.raises(DataError, match="more than 50 rows"):
        select(write_segments(tmp_path, 50), 1)


def test_columns_that_each_row_calls_otherwise_are_not_all_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(manifest, "MAX_UNKNOWN", 30)
    rows = [json.dumps({f"column{number}": 1, "audio": "/none", "text": "a"}) for number in range(100)]
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    read_manifest(tmp_path / "list.jsonl")
    assert "and at least 10 others" in caplog.text


def test_a_disk_of_temporary_files_without_room_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rejected_rows.tempfile, "tempdir", str(tmp_path / "gone"))
    rows = rejected_rows.RejectedRows(RejectedRow(1, "a") for _ in range(MAX_HELD - 1))
    with pytest.raises(OSError, match="gone"):
        rows.append(RejectedRow(2, "b"))
