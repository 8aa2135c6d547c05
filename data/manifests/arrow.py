"""Tables of Hugging Face's `datasets` as rows: Parquet files, and data sets that `save_to_disk` wrote.

One row per row, whose recording is the one embedded in it, or the file that it names. Splits are those of a
DatasetDict, or what files are called: `train-00000-of-00012.parquet`, or `0000.parquet` in a folder train.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data.errors import DataError
from data.files import is_file_name, read_json
from data.manifests.columns import COLUMNS, whole_recording
from data.manifests.rows import Row
from data.manifests.tables import SUFFIXES, read_table

STATE = "state.json"
# The name of a file of a split, as datasets and the Hub write it.
SHARD_NAME = re.compile(r"(.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?")


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk` from one data set."""
    return (folder / STATE).is_file() and (folder / "dataset_info.json").is_file()


def arrow_files(folder: Path) -> list[Path]:
    """The Arrow files of a saved data set, in order. DataError when its list of them cannot be read."""
    problem = "it names no files"
    try:
        state = read_json(folder / STATE)
        names = [file["filename"] for file in state["_data_files"]]
        # Versions before 2021 wrote chosen rows as a list beside all of them.
        if state.get("_indices_data_files"):
            raise ValueError("it chooses rows by a second file; load and save it again")
        if all(map(is_file_name, names)):
            return [folder / name for name in names]
        problem = "it names files outside of its folder"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{error!s:.200}"
    raise DataError(f"{folder / STATE} is not that of a data set of save_to_disk: {problem}.")


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder, in order."""
    return sorted(folder.glob("*.parquet"))


def read_saved(folder: Path, root: Path, split: str) -> Iterator[Row]:
    """The rows of a saved data set, whose places count from `root`."""
    return read_tables(arrow_files(folder), root, split)


def read_tables(files: list[Path], root: Path, split: str) -> Iterator[Row]:
    """The rows of some tables, whose places count from `root`. Those of a table whose name says no split are of
    `split`, which is empty where none is known."""
    # The folder of all splits in a clone of the Hub.
    if split == "data":
        split = ""
    for path in files:
        place = os.path.relpath(path, root)
        table_split = split_of_table(path) or split
        for line, row in enumerate(read_table(path, COLUMNS["audio"]), 1):
            if isinstance(row.columns, str):
                yield Row(line, row.columns, place)
                continue
            content = row.columns
            member = row.member
            if member is not None:
                content, stated_s = whole_recording(content)
                member = replace(member, stated_s=stated_s)
                content["audio"] = place
            elif row.name:
                # Paths count from the table.
                content["audio"] = os.path.join(os.path.dirname(place), row.name)
            content["split"] = content.get("split") or table_split
            yield Row(line, content, place, member)


def split_of_table(path: Path) -> str:
    """The split that the name of a table says; empty where it says none."""
    match = SHARD_NAME.fullmatch(path.name.removesuffix(path.suffix))
    # data is what save_to_disk calls its files, whatever the split.
    if match is None or match[1] == "data":
        return ""
    # train.clean.100, of LibriSpeech there.
    return match[1].replace(".", "-")


def is_table(path: Path) -> bool:
    """Whether a file is read as a table of `datasets`, by its name."""
    return path.suffix.lower() in SUFFIXES
