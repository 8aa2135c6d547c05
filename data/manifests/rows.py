"""The rows of a manifest file: JSONL, JSON, CSV or TSV, also compressed with gzip.

A row is never lost and never takes text from its neighbours: what cannot be read as a row comes back as the reason why.
Refused (`DataError`) is a file that cannot be read, or a table without the columns that are needed.
"""

import contextlib
import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.audio import is_file
from data.containers.members import Cell, Member
from data.errors import DataError
from data.files import open_regular
from data.manifests.columns import column_name

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
# Text of a manifest, compressed or not: tens of millions of rows, and no more than a machine for training holds.
MAX_BYTES = 4 * 2**30
PIECE_BYTES = 1 << 20
# A line takes some 60 bytes beside its own, be it as short as it may.
MAX_LINES = 50_000_000
# Of gzip: that of tables and JSON is below 50. A megabyte is allowed this much in any case.
MAX_COMPRESSION = 200
# Bytes that are not UTF-8, as the error handler "surrogateescape" lets them pass.
UNDECODED = re.compile("[\udc80-\udcff]")
NOT_UTF8 = "it is not UTF-8"
# Strings and the signs of structure: enough to see where a value ends, whatever is wrong inside of it.
JSON_SIGNS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)

Columns = dict[str, Any]


class Row(NamedTuple):
    """A row: its line (of the first, where it has several), and its columns or the reason why it has none.

    `place` names the file where a manifest has several. `member` is the recording of the row where it lies inside of
    the file that the column audio names.
    """

    line: int
    content: Columns | str
    place: str = ""
    member: Member | Cell | None = None


def manifest_suffix(path: Path) -> str:
    """The ending that says how a manifest is written, in lower case and without that of gzip; DataError for others."""
    name = path.name.lower().removesuffix(".gz")
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix
    if not path.exists():
        raise DataError(f"There is no manifest {path}; check the path, corpus.manifest.")
    raise DataError(
        f"{path} is not a manifest: its name ends in {path.suffix!r}; expected .jsonl, .json, .csv or .tsv, each also "
        "with .gz, or a folder with Kaldi's wav.scp in it."
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, with their ends: \\n, or \\r in a file that has no \\n.

    Bytes of other encodings become lone surrogates (see `UNDECODED`). DataError when there is no file, or none that can
    be read.
    """
    try:
        pieces: list[bytes] = []
        num_bytes = 0
        num_lines = 0
        with contextlib.ExitStack() as stack:
            file: Any = stack.enter_context(open_regular(path))
            max_bytes = MAX_BYTES
            num_stored = os.fstat(file.fileno()).st_size
            if path.name.lower().endswith(".gz"):
                max_bytes = min(MAX_BYTES, MAX_COMPRESSION * max(num_stored, 1 << 20))
                file = stack.enter_context(gzip.open(file))
            elif num_stored > max_bytes:
                # Known before anything is read, and refused below.
                num_bytes = num_stored
            # In pieces: Python takes the memory of a whole read before it reads.
            piece = file.read(PIECE_BYTES)
            while piece and num_bytes <= max_bytes and num_lines <= MAX_LINES:
                pieces.append(piece)
                num_bytes += len(piece)
                num_lines += max(piece.count(b"\n"), piece.count(b"\r"))
                piece = file.read(PIECE_BYTES)
    except FileNotFoundError as error:
        raise DataError(f"There is no manifest {path}; check the path, corpus.manifest.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"The manifest {path} cannot be read ({error}); it is no gzip, damaged or not whole: fetch it again."
        ) from error
    except OSError as error:
        raise DataError(f"The manifest {path} cannot be read ({error}); check the path and its permissions.") from error
    if num_bytes > max_bytes or num_lines > MAX_LINES:
        raise DataError(
            f"{path} holds more than {max_bytes} bytes of text, or more than {MAX_LINES} lines; divide it into several "
            "corpora."
        )
    content = b"".join(pieces)
    pieces.clear()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16, not UTF-8; convert it, for instance with iconv -f UTF-16 -t UTF-8.")
    # utf-8-sig: spreadsheets write a byte order mark, which would be part of the first column's name.
    text = content.decode("utf-8-sig", "surrogateescape")
    # A \r in a file with \n is part of a text, and the text must not be cut there.
    end = "\n" if "\n" in text else "\r"
    lines = [line + end for line in text.split(end)]
    lines[-1] = lines[-1].removesuffix(end)
    if not lines[-1]:
        lines.pop()
    return lines


def read_rows(path: Path, required: Sequence[Sequence[str]]) -> Iterator[Row]:
    """The rows of a manifest file. A table must have one column of each group in `required`; see `column_name` for how
    names are compared. Blank lines are no rows."""
    suffix = manifest_suffix(path)
    lines = read_lines(path)
    if suffix in (".csv", ".tsv"):
        return _table_rows(lines, path, required)
    # Some tools, NeMo among them, name files of one object a line .json.
    if suffix == ".json" and "".join(lines[:100]).lstrip().startswith("["):
        return _array_rows("".join(lines))
    stripped = [content.strip() for content in lines[:100]]
    beginnings = [content[:2] for content in stripped if content]
    # Each line of it would be a rejected row.
    if beginnings[:1] == ["{"] and len(beginnings) > 1 and not beginnings[1].startswith("{"):
        raise DataError(
            f"{path} holds an object over several lines, as SpeechBrain and pretty printers write it; write one object "
            "per line (jq -c), or a .json file with an array of them."
        )
    return (Row(line, json_columns(content)) for line, content in enumerate(lines, 1) if content.strip())


def beside_or_here(folder: Path, name: str) -> str:
    """A path that counts from a folder or, as for Kaldi and lhotse, from the working folder if it is only there."""
    if not is_file(folder / name) and is_file(Path(name)):
        return str(Path(name).absolute())
    return name


def _array_rows(text: str) -> Iterator[Row]:
    """The values of a JSON array, each parsed by itself, so that one that is wrong hides no other."""
    start = text.index("[") + 1
    line = 1 + text.count("\n", 0, start)
    depth = 1
    num_values = 0
    for sign in JSON_SIGNS.finditer(text, start):
        if sign[0] in "[{":
            depth += 1
        elif sign[0] in "]}":
            depth -= 1
        is_end = depth == 0
        if not is_end and (depth > 1 or sign[0] != ","):
            continue
        value = text[start : sign.start()]
        blank = value[: len(value) - len(value.lstrip())]
        # An empty array has no value before its end.
        if value.strip() or not is_end or num_values:
            yield Row(line + blank.count("\n"), json_columns(value))
            num_values += 1
        line += value.count("\n")
        start = sign.end()
        if is_end:
            break
    rest = text[start:]
    if rest.strip() or depth:
        yield Row(line, f"not JSON (what follows value {num_values} is not closed by ], or stands behind it)")


def json_columns(content: str) -> Columns | str:
    """The object that a JSON text holds, or why it holds none."""
    if UNDECODED.search(content):
        return NOT_UTF8
    try:
        row = json.loads(content, object_pairs_hook=_distinct)
    # A number of thousands of digits is a ValueError, thousands of brackets are a RecursionError.
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    if isinstance(row, dict):
        return row
    return f"a JSON {type(row).__name__}, expected an object"


def _distinct(pairs: list[tuple[str, Any]]) -> Columns:
    row = dict(pairs)
    # Python would take the last of two values and lose the other.
    if len(row) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return row


def _table_rows(lines: list[str], path: Path, required: Sequence[Sequence[str]]) -> Iterator[Row]:
    is_tsv = manifest_suffix(path) == ".tsv"
    header = _header(_fields(lines[:1], is_tsv) or [], path, required)
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
            reason = "a quotation mark in it is not closed, or is followed by more text"
            # Outside of quotes it would end the row in the middle of a text.
            if is_tsv or '"' not in content:
                reason = "it holds a carriage return inside of a field, or a field of more than 131072 characters"
            # What follows is tried as rows of their own.
            yield Row(line, reason)
            start += 1
            continue
        start = stop
        # A row of separators alone is a row, of empty fields.
        if not content.strip(" \r\n"):
            continue
        if UNDECODED.search(content):
            yield Row(line, NOT_UTF8)
        elif len(fields) != len(header):
            yield Row(line, f"the row has {len(fields)} fields, not the {len(header)} fields of the first line")
        else:
            yield Row(line, dict(zip(header, fields, strict=True)))


def _header(names: list[str], path: Path, required: Sequence[Sequence[str]]) -> list[str]:
    """The names of a table's columns; DataError where one of them is missing, or is there twice."""
    header: list[str] = []
    for name in names:
        header.append(UNDECODED.sub("\ufffd", name.strip().lower()))
    for aliases in required:
        if set(aliases).isdisjoint(map(column_name, header)):
            separators = [separator for separator in (";", "|", "\t") if separator in "".join(header)]
            if len(header) == 1 and separators:
                kind = "commas"
                if manifest_suffix(path) == ".tsv":
                    kind = "tabs"
                raise DataError(
                    f"{path} is read with {kind} between columns, and its first line has {separators[0]!r} instead: "
                    f"{header[0][:400]!r}. Save it with commas, as .csv, or with tabs, as .tsv."
                )
            raise DataError(
                f"{path} has no {aliases[0]} column: its first line names {', '.join(header)[:400] or 'nothing'}; "
                f"name one of its columns {' or '.join(aliases)}."
            )
    twice = {name for name in header if name and header.count(name) > 1}
    if twice:
        raise DataError(
            f"{path} names the column {' and '.join(sorted(twice))} twice; rename one, as only one could be read."
        )
    return header


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
    # The reader takes a \r outside of quotes for the end of a row.
    if len(rows) > 1:
        return None
    return rows[0] if rows else []
