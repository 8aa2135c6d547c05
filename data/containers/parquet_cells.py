"""Single values of Parquet files, where recordings are embedded in rows: read by pyarrow, an extra.

Rows are compressed in groups, and one value costs the reading of its whole group.
"""

import importlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.containers import AudioError
from data.files import check_regular

# Values that are decoded at a time: of recordings of 30 s, some 16 MB.
BATCH_ROWS = 16
MAX_BATCH_BYTES = 2**32


@dataclass(frozen=True, slots=True)
class Cell:
    """A value in a column of a Parquet file, under the name that the recording has there.

    `stated_s` is how long its row says that it is, None where it does not.
    """

    name: str
    column: str
    row_group: int
    row: int  # in the row group
    stated_s: float | None = None


def import_pyarrow(path: Path, module: str = "pyarrow") -> Any:
    """A module of pyarrow. AudioError when it is not installed."""
    try:
        # Imported here, as it is an extra, and takes half a second.
        return importlib.import_module(module)
    except ImportError as error:
        raise AudioError(f"{path} is read with the package pyarrow; run pip install 'chorus-asr[arrow]'") from error


def rows_at_once(group: Any, columns: Collection[str], most: int) -> int:
    """Of how many rows, up to `most`, the values in some columns of a group of rows take no more than 4 GiB.

    A dictionary repeats a value for some bytes a row, so each may be as large as all that is stored.
    """
    num_bytes = 1
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema in columns:
            num_bytes += max(0, column.total_uncompressed_size)
    return min(most, max(1, MAX_BATCH_BYTES // num_bytes))


def read_cell(path: Path, cell: Cell) -> bytes:
    """The bytes of one recording. AudioError when they cannot be read."""
    for _, content in read_cells(path, cell.row_group, cell.column, {cell.row}):
        return content
    raise AudioError(f"{cell.name} in {path} is not there any more: its group {cell.row_group} has fewer rows")


def read_cells(path: Path, row_group: int, column: str, rows: Collection[int]) -> Iterator[tuple[int, bytes]]:
    """The bytes of some rows of a row group, in order, each with its row; nothing of the others is kept.

    AudioError when the file cannot be read, or one of the rows has no bytes.
    """
    pyarrow = import_pyarrow(path)
    parquet = import_pyarrow(path, "pyarrow.parquet")
    try:
        check_regular(path)
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            num_rows = rows_at_once(file.metadata.row_group(row_group), [column], BATCH_ROWS)
            batches = file.iter_batches(num_rows, row_groups=[row_group], columns=[column], use_threads=False)
            row = 0
            for batch in batches:
                cells = batch.column(0)
                # audio.bytes comes as a structure with that field alone.
                if pyarrow.types.is_struct(cells.type):
                    cells = cells.flatten()[0]
                for cell in cells:
                    if row in rows:
                        content = cell.as_py()
                        if not isinstance(content, bytes):
                            raise AudioError(f"row {row} of group {row_group} in {path} holds no samples")
                        yield row, content
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise AudioError(f"{path} cannot be read ({error!s:.200})") from error
