from typing import Any

import pytest

from data.containers import AudioError
from data.manifests.columns import column_name, known_columns


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("Start Time", "start_time"),
        ("startTime", "start_time"),
        ("start (s)", "start_s"),
        ("End-Time", "end_time"),
        ("audioFilepath", "audio_filepath"),
        ("File Name", "file_name"),
        ("ID", "id"),
        (" Text ", "text"),
        ("", ""),
    ],
)
def test_a_column_is_known_however_its_words_are_joined(name: str, column: str) -> None:
    assert column_name(name) == column


@pytest.mark.parametrize(
    "part",
    [
        {"from": 1.0, "to": 2.0},
        {"t0": "1.5", "t1": "2.5"},
        {"segment": [1.0, 2.0]},
        {"timestamp": [1, 2]},
        {"segment": {"start": 1.0, "end": 2.0}},
        {"Clip Start": "00:00:01", "Clip End": "00:00:02"},
        {"speech_begin": 1},
        {"side": "A"},
        {"audio_channel": 1},
        {"channels": [1]} | {"channel_number": 2},
        {"start": 1.0, "duration_ms": 1000},
        {"offset": 1.0, "length": 2.0},
        {"start": 1.0, "num_samples": 16000},
        {"start_ms": 1000},
    ],
)
def test_a_part_of_a_recording_that_is_not_read_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(AudioError, match="column"):
        known_columns({"audio": "a.wav", "text": "one", **part})


@pytest.mark.parametrize(
    "column",
    [
        {"start_date": "2020"},
        {"timestamp": 1700000000},
        {"segment": 3},
        {"word_start": [0.1, 0.5]},
        {"char_end": 12},
        {"channels": 2},
        {"num_channels": 1},
        {"length": 16000},
        {"duration_ms": 1000},
        {"from": "an interview"},
        {"end_punctuation": "."},
        {"to": ""},
        {"is_end": True},
        {"pred_text": "one"},
    ],
)
def test_other_columns_are_passed_over_and_named(column: dict[str, Any]) -> None:
    row, others = known_columns({"audio": "a.wav", "text": "one", **column})
    assert row == {"audio": "a.wav", "text": "one"}
    assert others == [name for name, value in column.items() if value != ""]
