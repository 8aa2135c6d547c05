"""Tables of Hugging Face's `datasets` with recordings in them: Parquet files, and Arrow files of `save_to_disk`.

They are read by pyarrow alone: `datasets` is never imported, and a loading script that lies beside a table is never
run. Texts are read a few hundred rows at a time. A recording in an Arrow file is a range of bytes, in a Parquet file a
value of a compressed group of rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.containers import AudioError
from data.containers.arrow_messages import has_compressed_batches
from data.containers.members import Member
from data.containers.parquet_cells import Cell, import_pyarrow, rows_at_once
from data.errors import DataError
from data.files import check_regular, parse_json

SUFFIXES = (".parquet", ".arrow")
BATCH_ROWS = 64
# Characters of one value beside a recording. A Parquet file may repeat a large one in some bytes a row.
MAX_CELL_CHARACTERS = 2**16
# Texts of one table, as its footer announces them and as they come.
MAX_TEXT_BYTES = 4 * 2**30
COMPRESSED = (
    "{path} is compressed, and its recordings cannot be read where they lie; write it again without compression, as "
    "save_to_disk does, or as Parquet"
)
# Of the names of columns that a message quotes.
MAX_QUOTED = 400


class _RawRow(NamedTuple):
    columns: dict[str, Any]
    member: Member | Cell | None
    name: str


class TableRow(NamedTuple):
    """A row of a table: its columns but that of the recording, or why there are none; the recording inside of the file,
    and its name.

    `member` is None where the table holds the path of a file, which is then the name; empty where it holds none.
    """

    columns: dict[str, Any] | str
    member: Member | Cell | None
    name: str


def read_table(path: Path, audio_names: Sequence[str]) -> Iterator[TableRow]:
    """The rows of a Parquet or Arrow file, whose recordings are in the only column that holds some, or in that which
    has one of the names. DataError when the file cannot be read, or has no such column."""
    read = _read_arrow
    if path.suffix.lower() == ".parquet":
        read = _read_parquet
    try:
        pyarrow = import_pyarrow(path)
        num_characters = 0
        try:
            check_regular(path)
            for row in read(path, audio_names):
                problem = ""
                for name, value in row.columns.items():
                    if not isinstance(value, str):
                        continue
                    num_characters += len(value)
                    if len(value) > MAX_CELL_CHARACTERS:
                        problem = f"its column {name} holds {len(value)} characters, more than {MAX_CELL_CHARACTERS}"
                if num_characters > MAX_TEXT_BYTES:
                    raise AudioError(f"The table {path} holds more than {MAX_TEXT_BYTES} bytes of text; divide it")
                yield TableRow(problem or row.columns, row.member, row.name)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise AudioError(
                f"The table {path} cannot be read ({error!s:.300}); it is none, damaged, or a pointer of Git LFS: "
                "fetch it again"
            ) from error
    except AudioError as error:
        raise DataError(f"{error}.") from error


def _read_parquet(path: Path, audio_names: Sequence[str]) -> Iterator[_RawRow]:
    parquet = import_pyarrow(path, "pyarrow.parquet")
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        schema = file.schema_arrow
        audio = _audio_column(schema, path, audio_names)
        bytes_column, name_column = _parts(schema.field(audio))
        columns = [name for name in schema.names if name != audio]
        if name_column:
            columns.append(name_column)
        _check_text_size(file.metadata, bytes_column, path)
        labels = _class_labels(schema)
        for row_group in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(row_group)
            has_bytes = bool(bytes_column) and not _is_empty(group, bytes_column)
            row = 0
            texts: list[str] = []
            for number in range(group.num_columns):
                name = group.column(number).path_in_schema
                if name != bytes_column:
                    texts.append(name)
            num_rows = rows_at_once(group, texts, BATCH_ROWS)
            # Of a table with recordings alone no column is read; a batch has its rows all the same.
            for batch in file.iter_batches(num_rows, row_groups=[row_group], columns=columns, use_threads=False):
                for content in batch.to_pylist():
                    name = content.pop(audio, None)
                    if isinstance(name, dict):
                        name = name.get("path")
                    cell = None
                    if has_bytes:
                        cell = Cell(str(name or f"row {row} of group {row_group}"), bytes_column, row_group, row)
                    yield _RawRow(_with_labels(content, labels), cell, str(name or ""))
                    row += 1
            if row != group.num_rows:
                raise ValueError(f"{row} of {group.num_rows} rows of group {row_group} could be read")


def _read_arrow(path: Path, audio_names: Sequence[str]) -> Iterator[_RawRow]:
    pyarrow = import_pyarrow(path)
    # Mapped, so that a batch is a view of the file and its recordings are not read.
    with pyarrow.memory_map(str(path)) as mapped:
        whole = mapped.read_buffer()
        # The format of files is that of streams between two magic words, with a table of contents behind it. Read as
        # a stream, it has no batches but those that were looked at.
        stream = whole
        if bytes(whole[:6]) == b"ARROW1":
            stream = whole[8:]
        if has_compressed_batches(stream, pyarrow):
            raise AudioError(COMPRESSED.format(path=path))
        batches = pyarrow.ipc.open_stream(stream)
        audio = _audio_column(batches.schema, path, audio_names)
        labels = _class_labels(batches.schema)
        num_rows = 0
        for batch in batches:
            # Offsets that lead out of their buffers, texts that are no UTF-8.
            batch.validate(full=True)
            for start in range(0, batch.num_rows, BATCH_ROWS):
                part = batch.slice(start, BATCH_ROWS)
                cells = part.column(audio)
                names = [None] * part.num_rows
                if pyarrow.types.is_struct(cells.type):
                    fields = dict(zip([field.name for field in cells.type], cells.flatten(), strict=True))
                    if "path" in fields:
                        names = fields["path"].to_pylist()
                    cells = fields["bytes"]
                if pyarrow.types.is_string(cells.type):
                    names = cells.to_pylist()
                    ranges: list[tuple[int, int] | None] = [None] * part.num_rows
                else:
                    ranges = _ranges(cells, whole, path)
                contents = part.select([name for name in part.schema.names if name != audio]).to_pylist()
                for content, name, bytes_range in zip(contents, names, ranges, strict=True):
                    member = None
                    if bytes_range is not None:
                        member = Member(str(name or f"row {num_rows}"), *bytes_range)
                    yield _RawRow(_with_labels(content, labels), member, str(name or ""))
                    num_rows += 1


def _audio_column(schema: Any, path: Path, audio_names: Sequence[str]) -> str:
    """The column that holds the recordings, or their paths. AudioError when it cannot be told which it is."""
    embedded = [field.name for field in schema if _parts(field)[0]]
    for name in audio_names:
        if name in embedded:
            return name
    if len(embedded) == 1:
        return embedded[0]
    for name in audio_names:
        if not embedded and name in schema.names and _parts(schema.field(name))[1]:
            return name
    if embedded:
        names = ", ".join(embedded)[:MAX_QUOTED]
        raise AudioError(f"{path} has recordings in several columns ({names}); call the one that is meant audio")
    # With their types: a column that is called audio may hold arrays of samples.
    names = ", ".join(f"{field.name} ({field.type})" for field in schema)[:MAX_QUOTED]
    raise AudioError(
        f"{path} has no column of recordings: its columns are {names or 'none'}. One of type Audio, of binary values "
        "or of paths is read, under the name audio; arrays of samples are not, cast them to Audio"
    )


def _parts(field: Any) -> tuple[str, str]:
    """The columns of the bytes and of the paths in a column of recordings; empty where it has none."""
    types = import_pyarrow(Path(field.name)).types
    if types.is_binary(field.type) or types.is_large_binary(field.type):
        return field.name, ""
    if types.is_string(field.type) or types.is_large_string(field.type):
        return "", field.name
    if not types.is_struct(field.type):
        return "", ""
    parts = {part.name: part.type for part in field.type}
    content = parts.get("bytes")
    if content is None or not (types.is_binary(content) or types.is_large_binary(content)):
        return "", ""
    name_column = ""
    if "path" in parts:
        name_column = f"{field.name}.path"
    return f"{field.name}.bytes", name_column


def _ranges(cells: Any, whole: Any, path: Path) -> list[tuple[int, int] | None]:
    """Where the values of an array of bytes lie in a mapped file: the first byte and their number; None for none."""
    width = np.int32
    if "large" in str(cells.type):
        width = np.int64
    _, offsets, values = cells.buffers()
    if values is None or cells.null_count == len(cells):
        return [None] * len(cells)
    base = values.address - whole.address
    if not 0 <= base <= whole.size:
        raise AudioError(COMPRESSED.format(path=path))
    bounds = np.frombuffer(offsets, width)[cells.offset : cells.offset + len(cells) + 1].tolist()
    ranges: list[tuple[int, int] | None] = []
    for number, is_valid in enumerate(cells.is_valid().to_pylist()):
        if is_valid:
            ranges.append((base + bounds[number], bounds[number + 1] - bounds[number]))
        else:
            ranges.append(None)
    return ranges


def _check_text_size(metadata: Any, bytes_column: str, path: Path) -> None:
    """AudioError when the columns beside the recordings are larger than tables of texts are."""
    num_bytes = 0
    for row_group in range(metadata.num_row_groups):
        group = metadata.row_group(row_group)
        for number in range(group.num_columns):
            column = group.column(number)
            if column.path_in_schema != bytes_column:
                num_bytes += column.total_uncompressed_size
    if num_bytes > MAX_TEXT_BYTES:
        raise AudioError(f"The table {path} holds {num_bytes} bytes beside its recordings, more than {MAX_TEXT_BYTES}")


def _is_empty(group: Any, bytes_column: str) -> bool:
    """Whether no row of a group has bytes: recordings are then files, whose paths stand there."""
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == bytes_column and column.statistics is not None:
            return column.statistics.null_count == group.num_rows
    return False


def _class_labels(schema: Any) -> dict[str, list[str]]:
    """The names behind the numbers of columns of labels, as `datasets` writes them beside the schema."""
    labels: dict[str, list[str]] = {}
    content = (schema.metadata or {}).get(b"huggingface", b"{}")
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        for name, feature in parse_json(content)["info"]["features"].items():
            if feature.get("_type") == "ClassLabel":
                labels[name] = [str(label) for label in feature["names"]]
    return labels


def _with_labels(content: dict[str, Any], labels: dict[str, list[str]]) -> dict[str, Any]:
    for name, names in labels.items():
        number = content.get(name)
        # -1 stands for no label.
        if isinstance(number, int) and 0 <= number < len(names):
            content[name] = names[number]
        else:
            content[name] = None
    return content
