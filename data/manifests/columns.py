"""The columns of a manifest: under which names they may be given, and which others must not be passed over.

A column that says which part of a recording is meant is read or refused: without it, the whole recording would get the
text of a part.
"""

import functools
import math
import re
from typing import Any

from data.containers import AudioError

# Among the aliases are the columns of NeMo's manifests (audio_filepath, offset, duration), of Common Voice's tables
# (path, sentence), of WeNet's lists (wav, txt), of SpeechBrain's tables (ID, wav, wrd), and those in use for Kaldi's
# segments and lhotse's supervisions (start, end, utterance_id); file_name is that of Hugging Face's folders of audio,
# xmin and xmax those of Praat.
COLUMNS: dict[str, tuple[str, ...]] = {
    "audio": (
        *("audio", "path", "audio_filepath", "audio_path", "file", "filename", "wav"),
        *("audio_file", "file_name", "file_path", "filepath", "wav_path", "wav_file", "wav_filename"),
    ),
    "text": ("text", "transcript", "transcription", "sentence", "txt", "wrd"),
    "key": ("key", "id", "utt", "utt_id", "utterance_id"),
    "speaker": ("speaker", "speaker_id"),
    "language": ("language", "lang"),
    "split": ("split",),
    "start_s": (
        *("start_s", "start", "offset", "offset_s", "start_time", "begin", "begin_s", "begin_time"),
        *("start_sec", "start_seconds", "starttime", "segment_start", "begin_sec", "begin_seconds", "beg"),
        *("offset_sec", "offset_seconds", "onset", "xmin", "tmin"),
    ),
    "seconds": ("seconds", "duration", "duration_s", "duration_sec", "duration_seconds", "dur"),
    "end_s": (
        *("end_s", "end", "end_time", "stop"),
        *("end_sec", "end_seconds", "endtime", "segment_end", "stop_s", "stop_time", "xmax", "tmax"),
    ),
    "channel": ("channel", "channel_id", "channel_selector"),
}
"""What a manifest may say, and the column names (see `column_name`) under which it may say it. Others are not read."""

# Places in a recording in other units than seconds: a row that gives them would be read whole without them.
OTHER_UNITS = re.compile(r"(start|begin|offset|end|stop)_(ms|milliseconds|samples?|frames?)|(sample|frame)_offset")
# Alone they say how long the recording is; beside a start, where the part ends.
LENGTH = re.compile(r"(duration|dur|length|len)(_\w+)?|num_(samples|frames)")
# Of a name that is not known: words that say which part of a recording is meant, and others that make it something
# else, such as word_start and start_date.
PLACE = re.compile(
    r"start|begin|beg|onset|offset|end|stop|from|to|t0|t1|xmin|xmax|tmin|tmax|channel|chan|ch|side|segment|timestamp|span"
)
NO_PLACE = re.compile(r"chars?|characters?|words?|tokens?|lines?|pages?|bytes?|text|date|day|month|year")
# What a time, or a side of a call, looks like in a cell.
PLACE_VALUE = re.compile(r"[.,:]*\d[\d.,:]*|[ab]|left|right", re.IGNORECASE)
PLACES = frozenset(COLUMNS["start_s"] + COLUMNS["end_s"] + COLUMNS["seconds"])
ALIASES = frozenset(alias for aliases in COLUMNS.values() for alias in aliases)


# Called for every cell of a manifest.
@functools.lru_cache(maxsize=1 << 12)
def column_name(name: str) -> str:
    """A column's name as names are compared, in lower case with `_` between words: Start Time, startTime and start (s)
    are start_time, start_time and start_s."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return re.sub(r"[\W_]+", "_", words).strip("_").lower()


def number_of(value: Any) -> float:
    """A cell as a number; NaN where it is none."""
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    # Overflow: an integer of hundreds of digits.
    except (TypeError, ValueError, OverflowError):
        return math.nan


def known_columns(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The columns of a row that are read, by the names of `COLUMNS`, and the names of the others that hold something.

    AudioError when one is given twice, or when one of the others says which part of the recording is meant.
    """
    row: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in content.items():
        column = column_name(name)
        if column in row:
            raise AudioError(f"it has the column {column!r} twice, in different case")
        if column in ALIASES:
            row[column] = value
        # Spreadsheets leave the column of row numbers without a name.
        elif column and value not in ("", None):
            others[name] = value

    given = {name for name, value in row.items() if value not in ("", None)}
    has_start = not given.isdisjoint(COLUMNS["start_s"])
    has_end = not given.isdisjoint(COLUMNS["seconds"] + COLUMNS["end_s"])
    for name, value in others.items():
        column = column_name(name)
        if OTHER_UNITS.fullmatch(column):
            raise AudioError(f"column {column} is not in seconds; give start_s and end_s, or start_s and seconds")
        is_end = has_start and not has_end and LENGTH.fullmatch(column) is not None
        if is_end or _is_place(column, value):
            raise AudioError(
                f"column {column} seems to tell which part of the recording is meant, and is not read; call it "
                "start_s, end_s, seconds (all in seconds) or channel, or leave it out"
            )
    return row, list(others)


def whole_recording(content: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """The columns of a row whose recording is whole, and how long they say that it is, in seconds.

    Beside a recording that was cut out of a longer one, columns often still say where it lay there: these are not read.
    """
    columns: dict[str, Any] = {}
    times: dict[str, float] = {}
    for name, value in content.items():
        column = column_name(name)
        for kind in ("start_s", "end_s", "seconds"):
            if column in COLUMNS[kind]:
                times.setdefault(kind, number_of(value))
        is_read = column not in PLACES and column not in COLUMNS["audio"]
        if is_read and not OTHER_UNITS.fullmatch(column) and not _is_place(column, value):
            columns[name] = value
    stated_s = times.get("seconds")
    if stated_s is None and "end_s" in times:
        stated_s = times["end_s"] - times.get("start_s", 0.0)
    # NaN, of what is no number, is not above zero.
    if stated_s is None or not 0 < stated_s < math.inf:
        return columns, None
    return columns, stated_s


def _is_place(column: str, value: Any) -> bool:
    """Whether a column that is not known tells which part of a recording is meant, by its name and value."""
    words = column.split("_")
    if any(map(NO_PLACE.fullmatch, words)) or not any(map(PLACE.fullmatch, words)):
        return False
    if isinstance(value, dict):
        return any(map(PLACE.fullmatch, value))
    # A pair of times. Longer lists tell where each word lies.
    if isinstance(value, list):
        return 0 < len(value) <= 2 and all(isinstance(item, int | float) for item in value)
    # One number under these names says when a recording was made, or which of many it is.
    if words[-1] in ("segment", "timestamp", "span"):
        return False
    return not isinstance(value, bool) and PLACE_VALUE.fullmatch(str(value)) is not None
