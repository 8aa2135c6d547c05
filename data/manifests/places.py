"""What a manifest may be besides a table: a folder of Kaldi's, of lhotse's Shar, of NeMo's tars, of Hugging Face's
`datasets`, or of WebDataset's tars, or one such tar or table. Each gives rows.

Formats whose recordings lie inside of large files have lists, of which the content says what the corpus is, and
containers, which are told apart by name and size: their content is recorded where shards are made of them.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from data.errors import DataError
from data.manifests.arrow import arrow_files, is_saved_dataset, is_table, parquet_files, read_saved, read_tables
from data.manifests.audio_folder import metadata_files, read_audio_folder
from data.manifests.kaldi import is_kaldi, kaldi_files, read_kaldi
from data.manifests.nemo import MANIFEST, is_nemo_set, nemo_manifests, nemo_tars, read_nemo
from data.manifests.rows import Row
from data.manifests.shar import cuts_at, is_shar, read_shar, recordings_at
from data.manifests.splits import folders_of_splits
from data.manifests.tars import read_tars, tars_at


class PlaceFiles(NamedTuple):
    """The files of a corpus: lists, whose content decides, and containers, of which name and size do."""

    lists: list[Path]
    containers: list[Path]


class _Format(NamedTuple):
    """A kind of folders: how one is told, its rows by (folder, root, split), its lists and its containers.

    `has_lines` says that the numbers of rows are lines of a file that a user can look up.
    """

    matches: Callable[[Path], bool]
    rows: Callable[[Path, Path, str], Iterator[Row]]
    lists: Callable[[Path], list[Path]]
    containers: Callable[[Path], list[Path]]
    has_lines: bool = False


def _none(folder: Path) -> list[Path]:
    return []


# In this order: a NeMo data set has tars too.
FORMATS = (
    _Format(is_kaldi, read_kaldi, kaldi_files, _none, has_lines=True),
    _Format(is_shar, read_shar, cuts_at, recordings_at),
    _Format(is_nemo_set, read_nemo, nemo_manifests, lambda folder: list(nemo_tars(folder).values())),
    _Format(is_saved_dataset, read_saved, _none, arrow_files),
    _Format(lambda folder: bool(metadata_files(folder)), read_audio_folder, metadata_files, _none, has_lines=True),
    _Format(
        lambda folder: bool(parquet_files(folder)),
        lambda folder, root, split: read_tables(parquet_files(folder), root, split),
        _none,
        parquet_files,
    ),
    _Format(
        lambda folder: bool(tars_at(folder)),
        lambda folder, root, split: read_tars(tars_at(folder), root, split),
        _none,
        tars_at,
    ),
)


def place_of(path: Path) -> Path:
    """The folder of a data set where a manifest inside of it was named: NeMo's about its tars."""
    if path.name == MANIFEST and is_nemo_set(path.parent):
        return path.parent
    return path


def is_place(path: Path) -> bool:
    """Whether a manifest is a folder, tar or table, and not a list of rows."""
    return path.is_dir() or path.suffix.lower() == ".tar" or is_table(path)


def read_place(path: Path) -> Iterator[Row]:
    """The rows of a place, whose paths count from the folder. DataError when it is none that is known."""
    if not path.exists():
        raise DataError(f"There is no manifest {path}; check the path, corpus.manifest.")
    if path.is_file() and is_table(path):
        return read_tables([path], path.parent, "")
    if path.is_file():
        return read_tars([path], path.parent, "")
    layout, folders = _layout_of(path)
    rows = [layout.rows(folder, path, split) for split, folder in folders.items()]
    if layout.has_lines:
        return itertools.chain(*rows)
    return _number(itertools.chain(*rows))


def place_files(path: Path) -> PlaceFiles:
    """The files that make a place what it is. DataError when it is none that is known."""
    files = PlaceFiles([], [])
    if path.is_file():
        files.containers.append(path)
        return files
    layout, folders = _layout_of(path)
    for folder in folders.values():
        files.lists.extend(layout.lists(folder))
        files.containers.extend(layout.containers(folder))
    return files


def _layout_of(path: Path) -> tuple[_Format, dict[str, Path]]:
    for layout in FORMATS:
        folders = folders_of_splits(path, layout.matches)
        if folders:
            return layout, folders
    raise DataError(
        f"{path} is no manifest: neither it nor a folder in it has Kaldi's wav.scp, lhotse's cuts.000000.jsonl.gz with "
        "tars, NeMo's manifests with tars, a data set of save_to_disk, metadata.csv or metadata.jsonl, Parquet files, "
        "or tars. Name a file that lists the recordings and their texts. A loading script is never run."
    )


def _number(rows: Iterator[Row]) -> Iterator[Row]:
    """Rows of several files with numbers of their own, by which a rejected row is known again."""
    for number, row in enumerate(rows, 1):
        yield row._replace(line=number)
