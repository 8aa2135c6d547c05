"""A user's manifest: a JSONL, CSV or TSV file with one utterance per row.

Nothing is decoded here. A row that cannot be used is never dropped: it comes back as a `RejectedRow` with its line and
the reason. Columns that have no meaning here are named once in the log. What is refused outright (`DataError`) is a
manifest that cannot be read as a table at all.
"""

import csv
import hashlib
import json
import logging
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.audio import (
    AudioError,
    Clip,
    RejectedRow,
    Utterance,
    check_clip,
    find_file,
    is_key_character,
    open_recording,
)
from data.errors import DataError

# Among the aliases are the columns of NeMo's manifests (audio_filepath, offset, duration), of Common Voice's tables
# (path, sentence), and those in use for Kaldi's segments and lhotse's supervisions (start, end, utterance_id).
COLUMNS: dict[str, tuple[str, ...]] = {
    "audio": ("audio", "path", "audio_filepath", "audio_path", "file", "filename", "wav"),
    "text": ("text", "transcript", "transcription", "sentence"),
    "key": ("key", "id", "utt", "utt_id", "utterance_id"),
    "speaker": ("speaker", "speaker_id"),
    "language": ("language", "lang"),
    "split": ("split",),
    "start_s": ("start_s", "start", "offset", "offset_s", "start_time"),
    "seconds": ("seconds", "duration", "duration_s"),
    "end_s": ("end_s", "end", "end_time"),
    "channel": ("channel", "channel_id"),
}
"""What a manifest may say, and the column names under which it may say it. Other columns are not read."""

Row = dict[str, Any] | str
"""The columns of a row, or the reason why it has none."""

# Bytes that are not UTF-8, as the error handler "surrogateescape" lets them pass.
UNDECODED = re.compile("[\udc80-\udcff]")
NOT_UTF8 = "it is not UTF-8"

logger = logging.getLogger(__name__)


def read_manifest(path: Path, *, untranscribed: bool = False) -> tuple[list[Utterance], list[RejectedRow]]:
    """Read a manifest (.jsonl, .csv or .tsv, UTF-8): its usable rows in order, and the others with their
    reasons. Columns and their aliases are those of `COLUMNS`; audio is required, and text unless rows without one
    are wanted too (`untranscribed`): theirs is empty. Audio paths are relative to the manifest. Every audio file's
    header is read, none is decoded. A row without a key gets one from its path, start and channel; characters that a
    key cannot hold become `_`, and a key that another row has by this gets a few digits of a hash. `split` stays empty
    where the row names none. Texts are stripped of outer white space and otherwise as written.

    Raises DataError when the file is missing, not UTF-8, of another kind, or lacks a required column.
    """
    required = ("audio",) if untranscribed else ("audio", "text")
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".csv", ".tsv"):
        raise DataError(f"{path} is not a manifest: its name ends in {path.suffix!r}; expected .jsonl, .csv or .tsv.")

    try:
        # utf-8-sig: spreadsheets write a byte order mark, which would be part of the first column's name.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = list(file)
    except FileNotFoundError as error:
        raise DataError(f"There is no manifest {path}; check the path in the corpus section.") from error
    except OSError as error:
        raise DataError(f"The manifest {path} cannot be read ({error}); check the path and its permissions.") from error

    reader = _RowReader(path.parent, required)
    utterances: list[Utterance] = []
    rejected: list[RejectedRow] = []
    rows = _json_rows(lines) if suffix == ".jsonl" else _table_rows(lines, path, required)
    for line, row in rows:
        try:
            utterances.append(reader.utterance(line, row))
        # One bad row among thousands must not hide what is wrong with the others.
        except AudioError as error:
            # The reason is written as UTF-8, which has no lone surrogates.
            reason = str(error).encode("utf-8", "backslashreplace").decode()
            rejected.append(RejectedRow(line, reason))
    if not utterances and any(row.reason == NOT_UTF8 for row in rejected):
        raise DataError(f"{path} is not UTF-8; convert it, for instance with iconv.")
    if reader.unknown_columns:
        logger.warning(
            "%s: these columns are not read: %s. Known are %s.",
            path,
            ", ".join(sorted(reader.unknown_columns)),
            ", ".join(alias for aliases in COLUMNS.values() for alias in aliases),
        )
    return utterances, rejected


def _json_rows(lines: list[str]) -> Iterator[tuple[int, Row]]:
    for line, content in enumerate(lines, 1):
        if not content.strip():
            continue
        if UNDECODED.search(content):
            yield line, NOT_UTF8
            continue
        try:
            row = json.loads(content, object_pairs_hook=_distinct)
        # A number of thousands of digits is a ValueError, thousands of brackets are a RecursionError.
        except (ValueError, RecursionError) as error:
            yield line, f"not JSON ({error})"
            continue
        if isinstance(row, dict):
            yield line, row
        else:
            yield line, f"a JSON {type(row).__name__}, expected an object"


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    # Python would take the last of two values and lose the other.
    if len(row) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return row


def _table_rows(lines: list[str], path: Path, required: Sequence[str]) -> Iterator[tuple[int, Row]]:
    is_tsv = path.suffix.lower() == ".tsv"
    header = _fields(lines[:1], is_tsv) or []
    for column in required:
        if not set(COLUMNS[column]) & set(header):
            raise DataError(
                f"{path} has no {column} column: its first line names {', '.join(header) or 'nothing'}; "
                f"name one of its columns {' or '.join(COLUMNS[column])}."
            )
    twice = {name for name in header if name and header.count(name) > 1}
    if twice:
        raise DataError(
            f"{path} names the column {' and '.join(sorted(twice))} twice; rename one, as only one could be read."
        )

    start = 1
    while start < len(lines):
        stop = start + 1
        fields = _fields(lines[start:stop], is_tsv)
        # A quoted field may hold line ends. It may not hold whole rows: then its closing quote was forgotten, and the
        # rows behind it would become part of this one's text.
        while fields is None and stop < len(lines) and not is_tsv:
            if lines[stop].count(",") + 1 >= len(header):
                break
            stop += 1
            fields = _fields(lines[start:stop], is_tsv)
        line = start + 1
        content = "".join(lines[start:stop])
        if fields is None:
            # What follows is tried as rows of their own.
            yield line, "a quotation mark in it is not closed, or is followed by more text"
            start += 1
            continue
        start = stop
        if not content.strip():
            continue
        if UNDECODED.search(content):
            yield line, NOT_UTF8
        elif len(fields) != len(header):
            yield line, f"the row has {len(fields)} fields, not the {len(header)} fields of the first line"
        else:
            yield line, dict(zip(header, fields, strict=True))


def _fields(lines: list[str], is_tsv: bool) -> list[str] | None:
    """The fields of one row; None when a quotation mark is not closed at its end, or closed before it."""
    try:
        if is_tsv:
            # Quotes are ordinary characters in the TSV files of speech corpora.
            rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        else:
            # Strict: without it, an open quote ends with the file and "a"b is ab.
            rows = list(csv.reader(lines, strict=True))
    except csv.Error:
        return None
    return rows[0] if rows else []


class _RowReader:
    """Turns the rows of one manifest into utterances; remembers their keys."""

    def __init__(self, folder: Path, required: Sequence[str]) -> None:
        self._folder = folder
        self._required = required
        self._line_of_name: dict[tuple[Any, ...], int] = {}
        self._keys: set[str] = set()
        self.unknown_columns: set[str] = set()
        self._known_columns = {alias for aliases in COLUMNS.values() for alias in aliases}

    def utterance(self, line: int, row: Row) -> Utterance:
        """The utterance of a row. AudioError when the row cannot be used."""
        if isinstance(row, str):
            raise AudioError(row)
        for column in row.keys() - self._known_columns:
            self.unknown_columns.add(column.encode("utf-8", "backslashreplace").decode())
        audio = _text_cell(row, "audio", is_path=True)
        text = _text_cell(row, "text", numbers=False)
        if not audio:
            raise AudioError("it names no audio file")
        if not text and "text" in self._required:
            raise AudioError("its text is empty")

        split = _text_cell(row, "split")
        if not re.fullmatch(r"[\w-]*", split):
            raise AudioError(f"split {split!r} has characters other than letters, digits, _ and -")

        clip = self._clip(audio, row)
        name = _text_cell(row, "key")
        if name:
            identity: tuple[Any, ...] = (name,)
        else:
            name = str(Path(audio).with_suffix("")).strip("./")
            # Several clips of one file would otherwise share a key.
            if clip.start_s:
                name += f"_{round(clip.start_s * 1000):08d}ms"
            if clip.channel is not None:
                name += f"_ch{clip.channel}"
            identity = (audio, clip.start_s, clip.seconds, clip.channel)
        return Utterance(
            key=self._unique_key(name, identity, line),
            clips=(clip,),
            text=text,
            split=split,
            speaker=_text_cell(row, "speaker"),
            language=_text_cell(row, "language"),
            line=line,
        )

    def _clip(self, audio: str, row: dict[str, Any]) -> Clip:
        start_s = _number_cell(row, "start_s") or 0.0
        seconds = _number_cell(row, "seconds")
        end_s = _number_cell(row, "end_s")
        if end_s is not None:
            if end_s <= start_s:
                raise AudioError(f"its end {end_s:g} s is not behind its start {start_s:g} s")
            # Both are often rounded to hundredths.
            if seconds is not None and abs(end_s - start_s - seconds) > 0.02:
                raise AudioError(f"its end {end_s:g} s and its duration {seconds:g} s differ, start is {start_s:g} s")
            if seconds is None:
                seconds = round(end_s - start_s, 6)

        channel = _number_cell(row, "channel")
        if channel is not None and (channel < 0 or channel != int(channel)):
            raise AudioError(f"channel {channel:g} is not 0, 1, ... (the first channel is 0)")
        clip = Clip(find_file(self._folder, audio), start_s, seconds, None if channel is None else int(channel))
        check_clip(clip, open_recording(clip.path))
        return clip

    def _unique_key(self, name: str, identity: tuple[Any, ...], line: int) -> str:
        """The key of a name. Other names may give the same key: then it gets a part of the hash of its own.

        AudioError when another row has the very same name, or the same clip of the same file.
        """
        key = ""
        other_before = False
        for character in unicodedata.normalize("NFC", name):
            other = not is_key_character(character)
            # A run of other characters becomes one `_`.
            if not other:
                key += character
            elif not other_before:
                key += "_"
            other_before = other
        if identity in self._line_of_name:
            raise AudioError(f"key {key} is already that of line {self._line_of_name[identity]}")
        self._line_of_name[identity] = line
        digest = hashlib.sha256(repr(identity).encode()).hexdigest()
        plain = key
        length = 6
        while key in self._keys:
            key = f"{plain}_{digest[:length]}"
            length += 6
        self._keys.add(key)
        return key


def _cell(row: dict[str, Any], column: str) -> tuple[str, Any]:
    """The name and value under which a row gives a column; None where it is absent or blank."""
    names: list[str] = []
    values: list[Any] = []
    for name in COLUMNS[column]:
        value = row.get(name)
        if value is not None and value != "":
            names.append(name)
            values.append(value)
    if not names:
        return column, None
    if len(set(map(str, values))) > 1:
        raise AudioError(f"columns {' and '.join(names)} both give the {column} and differ")
    return names[0], values[0]


def _text_cell(row: dict[str, Any], column: str, *, numbers: bool = True, is_path: bool = False) -> str:
    name, value = _cell(row, column)
    if value is None:
        return ""
    # bool is an int in Python, but true is no speaker's number.
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise AudioError(f"column {name} holds {value!r} ({type(value).__name__}), expected a text")
    # Half of a character of UTF-16, left by a program that cut a text. Paths that are not UTF-8 hold some rightly.
    if not is_path and re.search("[\ud800-\udfff]", value):
        raise AudioError(f"column {name} holds half of a character (a lone surrogate): {ascii(value)[:80]}")
    return value.strip()


def _number_cell(row: dict[str, Any], column: str) -> float | None:
    name, value = _cell(row, column)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    # float(True) is 1.0.
    if isinstance(value, bool) or not math.isfinite(number):
        raise AudioError(f"column {name} holds {value!r}, expected a number")
    return number
