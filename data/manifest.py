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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import soundfile
import soxr

from data.errors import DataError

# Manifests round times to hundredths of a second; a clip may pass the end of its file by this much.
END_TOLERANCE_S = 0.02
# Lossy codecs overshoot full scale a little; floats beyond this were never scaled to [-1, 1].
PEAK_LIMIT = 2.0

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


@dataclass(frozen=True, slots=True)
class Clip:
    """A stretch of an audio file: from `start_s` for `seconds`, or to its end when that is None."""

    path: Path
    start_s: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording with its text; several clips are joined with `gaps_s` seconds of silence between them.

    `key` is unique in its corpus and made of letters, digits, `_` and `-`: it names files in a tar, where
    WebDataset takes a dot as the end of the key. `line` is the manifest's line, 0 when there is none.
    """

    key: str
    clips: tuple[Clip, ...]
    text: str
    split: str
    speaker: str = ""
    language: str = ""
    gaps_s: tuple[float, ...] = ()
    line: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.key):
            raise ValueError(f"utterance key {self.key!r} has characters other than letters, digits, _ and -")
        if not self.clips or len(self.gaps_s) != len(self.clips) - 1:
            raise ValueError(f"utterance {self.key}: {len(self.clips)} clips with {len(self.gaps_s)} gaps")


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """What could not be used and why; `line` is that of the manifest (0: none), `key` is empty if unknown."""

    line: int
    reason: str
    key: str = ""


# --- audio ----------------------------------------------------------------------------------------


def read_audio(utterance: Utterance, sample_rate_hz: int) -> np.ndarray:
    """Decode an utterance: float32 [samples] in about [-1, 1], channels averaged, at the given rate.

    Each clip is reached by seeking in a freshly opened file, so the result does not depend on what was read
    before. Raises DataError when a file is missing, unreadable, shorter than the clip, or holds no usable
    samples.
    """
    pieces: list[np.ndarray] = []
    for clip, gap_s in zip(utterance.clips, (*utterance.gaps_s, 0.0), strict=True):
        try:
            pieces.append(_read_clip(clip, sample_rate_hz))
        except _UnusableError as error:
            raise DataError(f"Utterance {utterance.key} cannot be read: {error}.") from error
        pieces.append(np.zeros(round(gap_s * sample_rate_hz), np.float32))
    return np.concatenate(pieces)


def audio_seconds(path: Path) -> float:
    """The length of an audio file, from its header. Raises DataError when it is missing or no audio."""
    try:
        return _audio_seconds(path)
    except _UnusableError as error:
        raise DataError(f"{error}; put a readable recording there or take it out of the corpus.") from error


class _UnusableError(Exception):
    """The reason why one row or one clip cannot be used."""


def _audio_seconds(path: Path) -> float:
    if not path.is_file():
        raise _UnusableError(f"there is no audio file {path}")
    try:
        header = soundfile.info(path)
    except soundfile.SoundFileError as error:
        raise _UnusableError(f"{path} is not readable as audio ({error})") from error
    return header.frames / header.samplerate


def _read_clip(clip: Clip, sample_rate_hz: int) -> np.ndarray:
    if not clip.path.is_file():
        raise _UnusableError(f"there is no audio file {clip.path}")
    try:
        with soundfile.SoundFile(clip.path) as audio:
            source_rate_hz = audio.samplerate
            _check_times(clip, audio.frames / source_rate_hz)
            start = round(clip.start_s * source_rate_hz)
            wanted = audio.frames - start
            if clip.seconds is not None:
                wanted = min(wanted, round(clip.seconds * source_rate_hz))
            if start:
                audio.seek(start)
            samples = audio.read(wanted, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise _UnusableError(f"{clip.path} is damaged or no audio ({error})") from error
    if len(samples) < wanted:
        raise _UnusableError(f"{clip.path} breaks off: {len(samples)} of {wanted} samples could be decoded")
    mono = samples.mean(axis=1)
    peak = np.abs(mono).max(initial=0.0)
    if not len(mono) or not peak <= PEAK_LIMIT:
        raise _UnusableError(f"{clip.path} gives {len(mono)} samples with a peak of {peak}, expected some up to 1")
    if source_rate_hz != sample_rate_hz:
        mono = soxr.resample(mono, source_rate_hz, sample_rate_hz, quality="HQ")
    return mono


def _check_times(clip: Clip, duration_s: float) -> None:
    if not 0 <= clip.start_s < duration_s:
        raise _UnusableError(f"start {clip.start_s:g} s lies outside of {clip.path} ({duration_s:.3f} s)")
    if clip.seconds is None:
        return
    if clip.seconds <= 0:
        raise _UnusableError(f"a duration of {clip.seconds:g} s is not positive")
    end_s = clip.start_s + clip.seconds
    if end_s > duration_s + END_TOLERANCE_S:
        raise _UnusableError(f"end {end_s:g} s lies outside of {clip.path} ({duration_s:.3f} s)")


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
