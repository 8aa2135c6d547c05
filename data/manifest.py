"""Utterances: where their audio lies, what is said in them, and how to read both from a user's manifest.

An `Utterance` names stretches of audio files and a text; nothing is decoded until `read_audio`. A manifest
is a JSONL, CSV or TSV file with one utterance per row. A row that cannot be used is never dropped: it comes
back as a `RejectedRow` with its line and the reason. What is refused outright (`DataError`) is a manifest
that cannot be read as a table at all.
"""

import csv
import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from data.audio import Clip, RejectedRow, Utterance, _audio_seconds, _check_times, _UnusableError
from data.errors import DataError

COLUMNS: dict[str, tuple[str, ...]] = {
    "audio": ("audio", "path", "audio_filepath", "file"),
    "text": ("text", "transcript", "sentence"),
    "key": ("key", "id"),
    "speaker": ("speaker",),
    "language": ("language", "lang"),
    "split": ("split",),
    "start_s": ("start_s", "start", "offset"),
    "seconds": ("seconds", "duration"),
}
"""What a manifest may say, and the column names under which it may say it. Other columns are not read."""


# --- audio ----------------------------------------------------------------------------------------


# --- manifests ------------------------------------------------------------------------------------


def read_manifest(path: Path, *, untranscribed: bool = False) -> tuple[list[Utterance], list[RejectedRow]]:
    """Read a manifest (.jsonl, .csv or .tsv, UTF-8): its usable rows in order, and the others with their
    reasons. Columns and their aliases are those of `COLUMNS`; audio is required, and text unless rows without one
    are wanted too (`untranscribed`): theirs is empty. Audio paths are relative to the manifest. Every audio file's
    header is read, none is decoded. A row without a key gets one from its path and start; characters that a key cannot
    hold become `_`. `split` stays empty where the row names none. Texts are stripped of outer white space and otherwise
    as written.

    Raises DataError when the file is missing, not UTF-8, of another kind, or lacks a required column.
    """
    required = ("audio",) if untranscribed else ("audio", "text")
    rows = _ROW_READERS.get(path.suffix.lower())
    if rows is None:
        raise DataError(f"{path} is not a manifest: its name ends in {path.suffix!r}; expected .jsonl, .csv or .tsv.")
    reader = _RowReader(path.parent, required)
    utterances: list[Utterance] = []
    rejected: list[RejectedRow] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, row in rows(file, path, required):
                try:
                    utterances.append(reader.utterance(line, row))
                except _UnusableError as error:
                    rejected.append(RejectedRow(line, str(error)))
    except FileNotFoundError as error:
        raise DataError(f"There is no manifest {path}; check the path in the corpus section.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); convert it, for instance with iconv.") from error
    return utterances, rejected


Row = dict[str, Any] | str
"""The columns of a row, or the reason why it has none."""


def _json_rows(file: TextIO, path: Path, required: Sequence[str]) -> Iterator[tuple[int, Row]]:
    for line, content in enumerate(file, 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            yield line, f"not JSON ({error})"
            continue
        yield line, row if isinstance(row, dict) else f"a JSON {type(row).__name__}, expected an object"


def _table_rows(
    file: TextIO, path: Path, required: Sequence[str], dialect: dict[str, Any]
) -> Iterator[tuple[int, Row]]:
    table = csv.DictReader(file, **dialect)
    header = list(table.fieldnames or ())
    for column in required:
        if not set(COLUMNS[column]) & set(header):
            raise DataError(
                f"{path} has no {column} column: its first line names {', '.join(header) or 'nothing'}; "
                f"name one of its columns {' or '.join(COLUMNS[column])}."
            )
    try:
        for row in table:
            if None in row or None in row.values():
                yield table.line_num, f"the row does not have the {len(header)} fields of the first line"
            else:
                yield table.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}: not a readable table ({error}).") from error


_ROW_READERS: dict[str, Callable[[TextIO, Path, Sequence[str]], Iterator[tuple[int, Row]]]] = {
    ".jsonl": _json_rows,
    ".csv": functools.partial(_table_rows, dialect={}),
    # Quotes are ordinary characters in the TSV files of speech corpora.
    ".tsv": functools.partial(_table_rows, dialect={"delimiter": "\t", "quoting": csv.QUOTE_NONE}),
}


class _RowReader:
    """Turns the rows of one manifest into utterances; remembers keys and the headers of packed files."""

    def __init__(self, folder: Path, required: Sequence[str]) -> None:
        self._folder, self._required = folder, required
        self._line_of_key: dict[str, int] = {}
        self._seconds = functools.cache(_audio_seconds)

    def utterance(self, line: int, row: Row) -> Utterance:
        if isinstance(row, str):
            raise _UnusableError(row)
        audio, text = _text_cell(row, "audio"), _text_cell(row, "text", numbers=False)
        if not audio:
            raise _UnusableError("it names no audio file")
        if not text and "text" in self._required:
            raise _UnusableError("its text is empty")
        split = _text_cell(row, "split")
        if not re.fullmatch(r"[\w-]*", split):
            raise _UnusableError(f"split {split!r} has characters other than letters, digits, _ and -")
        clip = Clip(self._folder / audio, _number_cell(row, "start_s") or 0.0, _number_cell(row, "seconds"))
        _check_times(clip, self._seconds(clip.path))
        key = self._claim_key(line, _text_cell(row, "key"), audio, clip)
        speaker, language = _text_cell(row, "speaker"), _text_cell(row, "language")
        return Utterance(key, (clip,), text, split, speaker, language, line=line)

    def _claim_key(self, line: int, name: str, audio: str, clip: Clip) -> str:
        if not name:
            name = str(Path(audio).with_suffix("")).strip("./")
            if clip.start_s:
                name += f"_{round(clip.start_s * 1000):08d}ms"
        key = re.sub(r"[^\w-]+", "_", name)
        if key in self._line_of_key:
            raise _UnusableError(f"key {key} is already that of line {self._line_of_key[key]}")
        self._line_of_key[key] = line
        return key


def _cell(row: dict[str, Any], column: str) -> tuple[str, Any]:
    """The name and value under which a row gives a column; None where it is absent or blank."""
    given = {name: row[name] for name in COLUMNS[column] if row.get(name) not in (None, "")}
    if len(set(map(str, given.values()))) > 1:
        raise _UnusableError(f"columns {' and '.join(given)} both give the {column} and differ")
    return next(iter(given.items()), (column, None))


def _text_cell(row: dict[str, Any], column: str, numbers: bool = True) -> str:
    name, value = _cell(row, column)
    if value is None:
        return ""
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise _UnusableError(f"column {name} holds {value!r} ({type(value).__name__}), expected a text")
    return value.strip()


def _number_cell(row: dict[str, Any], column: str) -> float | None:
    name, value = _cell(row, column)
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise _UnusableError(f"column {name} holds {value!r}, expected seconds as a number")
    return number
