"""A user's manifest: a JSONL, CSV or TSV file with one utterance per row.

Nothing is decoded here. A row that cannot be used is never dropped: it comes back as a `RejectedRow` with its line and
the reason. What is refused outright (`DataError`) is a manifest that cannot be read as a table at all.
"""

import csv
import functools
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from data.audio import AudioError, Clip, RejectedRow, Utterance, check_times, header_seconds
from data.errors import DataError

# Among the aliases are the columns of NeMo's manifests (audio_filepath, offset, duration) and of Common Voice's tables
# (path, sentence).
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

Row = dict[str, Any] | str
"""The columns of a row, or the reason why it has none."""


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
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".csv", ".tsv"):
        raise DataError(f"{path} is not a manifest: its name ends in {path.suffix!r}; expected .jsonl, .csv or .tsv.")

    reader = _RowReader(path.parent, required)
    utterances: list[Utterance] = []
    rejected: list[RejectedRow] = []
    try:
        # utf-8-sig: spreadsheets write a byte order mark, which would be part of the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _json_rows(file) if suffix == ".jsonl" else _table_rows(file, path, required)
            for line, row in rows:
                try:
                    utterances.append(reader.utterance(line, row))
                # One bad row among thousands must not hide what is wrong with the others.
                except AudioError as error:
                    rejected.append(RejectedRow(line, str(error)))
    except FileNotFoundError as error:
        raise DataError(f"There is no manifest {path}; check the path in the corpus section.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); convert it, for instance with iconv.") from error
    return utterances, rejected


def _json_rows(file: TextIO) -> Iterator[tuple[int, Row]]:
    for line, content in enumerate(file, 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            yield line, f"not JSON ({error})"
            continue
        if isinstance(row, dict):
            yield line, row
        else:
            yield line, f"a JSON {type(row).__name__}, expected an object"


def _table_rows(file: TextIO, path: Path, required: Sequence[str]) -> Iterator[tuple[int, Row]]:
    if path.suffix.lower() == ".tsv":
        # Quotes are ordinary characters in the TSV files of speech corpora.
        table = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        table = csv.DictReader(file)

    header = list(table.fieldnames or ())
    for column in required:
        if not set(COLUMNS[column]) & set(header):
            raise DataError(
                f"{path} has no {column} column: its first line names {', '.join(header) or 'nothing'}; "
                f"name one of its columns {' or '.join(COLUMNS[column])}."
            )
    try:
        for row in table:
            # DictReader puts what is beyond the header under None, and None where a row is too short.
            if None in row or None in row.values():
                yield table.line_num, f"the row does not have the {len(header)} fields of the first line"
            else:
                yield table.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}: not a readable table ({error}).") from error


class _RowReader:
    """Turns the rows of one manifest into utterances; remembers keys and the headers of packed files."""

    def __init__(self, folder: Path, required: Sequence[str]) -> None:
        self._folder = folder
        self._required = required
        self._line_of_key: dict[str, int] = {}
        # Many rows may lie in one long file, whose header is then read once.
        self._duration_s = functools.cache(header_seconds)

    def utterance(self, line: int, row: Row) -> Utterance:
        """The utterance of a row. AudioError when the row cannot be used."""
        if isinstance(row, str):
            raise AudioError(row)
        audio = _text_cell(row, "audio")
        text = _text_cell(row, "text", numbers=False)
        if not audio:
            raise AudioError("it names no audio file")
        if not text and "text" in self._required:
            raise AudioError("its text is empty")

        split = _text_cell(row, "split")
        if not re.fullmatch(r"[\w-]*", split):
            raise AudioError(f"split {split!r} has characters other than letters, digits, _ and -")

        start_s = _number_cell(row, "start_s")
        seconds = _number_cell(row, "seconds")
        clip = Clip(self._folder / audio, start_s or 0.0, seconds)
        check_times(clip, self._duration_s(clip.path))

        name = _text_cell(row, "key")
        if not name:
            name = str(Path(audio).with_suffix("")).strip("./")
            # Several clips of one file would otherwise share a key.
            if clip.start_s:
                name += f"_{round(clip.start_s * 1000):08d}ms"
        key = re.sub(r"[^\w-]+", "_", name)
        if key in self._line_of_key:
            raise AudioError(f"key {key} is already that of line {self._line_of_key[key]}")
        self._line_of_key[key] = line

        return Utterance(
            key=key,
            clips=(clip,),
            text=text,
            split=split,
            speaker=_text_cell(row, "speaker"),
            language=_text_cell(row, "language"),
            line=line,
        )


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


def _text_cell(row: dict[str, Any], column: str, numbers: bool = True) -> str:
    name, value = _cell(row, column)
    if value is None:
        return ""
    # bool is an int in Python, but true is no speaker's number.
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise AudioError(f"column {name} holds {value!r} ({type(value).__name__}), expected a text")
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
        raise AudioError(f"column {name} holds {value!r}, expected seconds as a number")
    return number
