"""A user's manifest: a JSONL, JSON, CSV or TSV file with one utterance per row, or what other tools write in its place.

Nothing is decoded here. A row that cannot be used is never dropped: it comes back as a `RejectedRow` with its line and
the reason, so that rows in = used + rejected. Columns that have no meaning here are named once in the log. What is
refused outright (`DataError`) is a manifest that cannot be read as a table at all.
"""

import hashlib
import itertools
import logging
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
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
from data.containers.members import Cell, Member
from data.errors import DataError
from data.manifests.columns import COLUMNS, known_columns, number_of
from data.manifests.lhotse import SUPERVISIONS, kind_of, read_lhotse, recordings_beside
from data.manifests.places import PlaceFiles, is_place, place_files, place_of, read_place
from data.manifests.rows import NOT_UTF8, Columns, Row, read_rows
from data.rejected_rows import RejectedRows

# Unknown columns that one line of the log names.
MAX_NAMED = 20
# And that are remembered: each row may have other ones.
MAX_UNKNOWN = 10_000
# Seconds and channels beyond it are none; up to it they can be computed with.
MAX_NUMBER = 10**12
# No file system takes longer paths.
MAX_PATH = 4096
# Characters of a cell that a reason quotes.
MAX_QUOTED = 80

logger = logging.getLogger(__name__)


def read_manifest(path: Path, *, untranscribed: bool = False) -> tuple[list[Utterance], RejectedRows]:
    """Read a manifest: its usable rows in order, and the others with their reasons. It is a .jsonl, .json, .csv or .tsv
    file in UTF-8 (each also with .gz), lhotse's cuts or supervisions (see `data.manifests.lhotse`), or what
    `data.manifests.places` knows.

    Columns and their aliases are those of `COLUMNS` in `data.manifests.columns`; audio is required, and text unless
    rows without one are wanted too (`untranscribed`): theirs is empty. Audio paths are relative to the manifest. Every
    recording's length is measured, none is decoded; one inside of a tar or table is not opened at all. A row without a
    key gets one from its path, start and channel; characters that a key cannot hold become `_`, and a key that another
    row has by this gets a few digits of a hash.
    `split` stays empty where the row names none. Texts are stripped of outer white space and otherwise as written.

    Raises DataError when the file is missing, not UTF-8, of another kind, or lacks a required column.
    """
    required = ["audio"]
    if not untranscribed:
        required.append("text")
    path = place_of(path)
    folder = path
    if not path.is_dir():
        folder = path.parent
    reader = _RowReader(folder, required)
    utterances: list[Utterance] = []
    rejected = RejectedRows()
    for row in _rows(path, required):
        try:
            utterances.append(reader.utterance(row))
        # One bad row among thousands must not hide what is wrong with the others.
        except AudioError as error:
            # The reason is written as UTF-8, which has no lone surrogates.
            reason = str(error).encode("utf-8", "backslashreplace").decode()
            if row.place:
                reason = f"{row.place}: {reason}"
            rejected.append(RejectedRow(row.line, reason, path=reader.named_file(row)))
    if not utterances and any(row.reason == NOT_UTF8 for row in rejected):
        raise DataError(f"{path} is not UTF-8; convert it, for instance with iconv.")
    if reader.unknown_columns:
        names = sorted(reader.unknown_columns)[:MAX_NAMED]
        if len(reader.unknown_columns) > MAX_NAMED:
            at_least = "at least " if len(reader.unknown_columns) == MAX_UNKNOWN else ""
            names.append(f"and {at_least}{len(reader.unknown_columns) - MAX_NAMED} others")
        logger.warning(
            "%s: these columns are not read: %s. Known are %s, and what other tools call these.",
            path,
            ", ".join(names),
            ", ".join(COLUMNS),
        )
    return utterances, rejected


def manifest_files(path: Path) -> PlaceFiles:
    """The files that `read_manifest` reads besides recordings: what a manifest says depends on these."""
    path = place_of(path)
    files = PlaceFiles([], [])
    # Whoever reads the manifest says what is wrong with it.
    with suppress(DataError):
        if is_place(path):
            return place_files(path)
        files.lists.append(path)
        if SUPERVISIONS in path.name:
            files.lists.append(recordings_beside(path))
    return files


def _rows(path: Path, required: Sequence[str]) -> Iterator[Row]:
    if is_place(path):
        yield from read_place(path)
        return
    rows = read_rows(path, [COLUMNS[column] for column in required])
    first = list(itertools.islice(rows, 1))
    rows = itertools.chain(first, rows)
    kind = ""
    if first and isinstance(first[0].content, dict):
        kind = kind_of(first[0].content)
    if kind:
        rows = read_lhotse(path, rows, kind)
    yield from rows


class _RowReader:
    """Turns the rows of one manifest into utterances; remembers their keys."""

    def __init__(self, folder: Path, required: Sequence[str]) -> None:
        self._folder = folder
        self._required = required
        self._line_of_name: dict[tuple[Any, ...], int] = {}
        self._keys: set[str] = set()
        self.unknown_columns: set[str] = set()

    def utterance(self, given: Row) -> Utterance:
        """The utterance of a row. AudioError when the row cannot be used."""
        if isinstance(given.content, str):
            raise AudioError(given.content)
        line = given.line
        row, unknown = known_columns(given.content)
        for name in unknown:
            # Written to a log in UTF-8, which has no lone surrogates.
            printable = name.strip().encode("utf-8", "backslashreplace").decode()
            if len(self.unknown_columns) < MAX_UNKNOWN:
                self.unknown_columns.add(printable[:MAX_QUOTED])
        audio = _text_cell(row, "audio", is_path=True)
        text = _text_cell(row, "text", numbers=False)
        if not audio:
            raise AudioError("it names no audio file")
        if not text and "text" in self._required:
            raise AudioError("its text is empty")

        split = _text_cell(row, "split")
        if not re.fullmatch(r"[\w-]*", split):
            raise AudioError(f"split {split!r} has characters other than letters, digits, _ and -")

        clip = self._clip(audio, row, given.member)
        name = _text_cell(row, "key")
        if name:
            identity: tuple[Any, ...] = (name,)
        else:
            recording = audio
            if given.member is not None:
                recording = given.member.name
            name = str(Path(recording).with_suffix("")).strip("./\\")
            # Several clips of one file would otherwise share a key.
            if clip.start_s:
                name += f"_{round(clip.start_s * 1000):08d}ms"
            if clip.channel is not None:
                name += f"_ch{clip.channel}"
            identity = (audio, clip.start_s, clip.seconds, clip.channel)
            if given.member is not None:
                identity = (*identity, given.member)
        return Utterance(
            key=self._unique_key(name, identity, line),
            clips=(clip,),
            text=text,
            split=split,
            speaker=_text_cell(row, "speaker"),
            language=_text_cell(row, "language"),
            line=line,
        )

    def named_file(self, given: Row) -> str:
        """The path of the recording that a rejected row names, empty where it names none."""
        try:
            audio = _text_cell(given.content, "audio", is_path=True) if isinstance(given.content, dict) else ""
        except AudioError:
            return ""
        if not audio:
            return ""
        path = str(find_file(self._folder, audio).absolute())
        # Rejected rows are written in UTF-8, and a sentence in the place of a name is none.
        if len(path) > MAX_PATH or re.search("[\ud800-\udfff\0]", path):
            return ""
        return path

    def _clip(self, audio: str, row: Columns, member: Member | Cell | None) -> Clip:
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
        if channel is not None:
            if channel < 0 or channel != int(channel):
                raise AudioError(f"channel {channel:g} is not 0, 1, ... (the first channel is 0)")
            channel = int(channel)
        path = find_file(self._folder, audio)
        clip = Clip(path, start_s, seconds, channel, member)
        # What lies inside of another file is checked when it is decoded, so that a corpus is read once.
        if member is None:
            check_clip(clip, open_recording(path))
        return clip

    def _unique_key(self, name: str, identity: tuple[Any, ...], line: int) -> str:
        """The key of a name. Other names may give the same key: then it gets a part of the hash of its own.

        AudioError when another row has the very same name, or the same clip of the same file.
        """
        key = ""
        was_other = False
        for character in unicodedata.normalize("NFC", name):
            is_other = not is_key_character(character)
            # A run of other characters becomes one `_`.
            if not is_other:
                key += character
            elif not was_other:
                key += "_"
            was_other = is_other
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


def _cell(row: Columns, column: str) -> tuple[str, Any]:
    """The name and value under which a row gives a column; None where it is absent or blank."""
    names: list[str] = []
    values: list[Any] = []
    for name in COLUMNS[column]:
        value = row.get(name)
        if value is None or value == "":
            continue
        # Their text may be without end, or nested deeper than Python can write it.
        if isinstance(value, (list, dict)):
            raise AudioError(f"column {name} holds a {type(value).__name__}, expected a text or number")
        names.append(name)
        values.append(value)
    if not names:
        return column, None
    if len(set(map(str, values))) > 1:
        raise AudioError(f"columns {' and '.join(names)} both give the {column} and differ")
    return names[0], values[0]


def _text_cell(row: Columns, column: str, *, numbers: bool = True, is_path: bool = False) -> str:
    name, value = _cell(row, column)
    if value is None:
        return ""
    # bool is an int in Python, but true is no speaker's number.
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise AudioError(f"column {name} holds {_quoted(value)} ({type(value).__name__}), expected a text")
    # Half of a character of UTF-16, left by a program that cut a text. Paths that are not UTF-8 hold some rightly.
    if not is_path and re.search("[\ud800-\udfff]", value):
        raise AudioError(f"column {name} holds half of a character (a lone surrogate): {ascii(value)[:MAX_QUOTED]}")
    if not is_path and "\ufffd" in value:
        raise AudioError(
            f"column {name} holds U+FFFD, which stands for a character that was lost: {_quoted(value)}; "
            "write it again from its source"
        )
    return value.strip()


def _number_cell(row: Columns, column: str) -> float | None:
    name, value = _cell(row, column)
    if value is None:
        return None
    number = number_of(value)
    # Also of what is no number, NaN.
    if not abs(number) <= MAX_NUMBER:
        raise AudioError(f"column {name} holds {_quoted(value)}, expected a number")
    return number


def _quoted(value: Any) -> str:
    text = repr(value)
    if len(text) > MAX_QUOTED:
        text = f"{text[:MAX_QUOTED]}..."
    return text
