"""Hugging Face's folders of audio as rows: `metadata.csv` or `.jsonl` beside recordings, or in folders of splits."""

from collections.abc import Iterator
from pathlib import Path

from data.manifests.columns import COLUMNS, column_name
from data.manifests.rows import Row, read_rows
from data.manifests.splits import split_in_name

# As `datasets` looks for them; the first that is there is read.
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.tsv")
# What datasets reads into a column audio.
FILE_OF_AUDIO = "audio_file_name"


def metadata_files(folder: Path) -> list[Path]:
    """The table about the recordings in a folder; none where there is none."""
    for name in METADATA:
        if (folder / name).is_file():
            return [folder / name]
    return []


def read_audio_folder(folder: Path, root: Path, split: str) -> Iterator[Row]:
    """The rows of one table, whose paths count from `root`; `split` is empty where the folder names none."""
    (table,) = metadata_files(folder)
    place = str(table.relative_to(root))
    for row in read_rows(table, [(*COLUMNS["audio"], FILE_OF_AUDIO)]):
        if isinstance(row.content, str):
            yield Row(row.line, row.content, place)
            continue
        content = dict(row.content)
        if "file_name" not in content and FILE_OF_AUDIO in content:
            content["file_name"] = content.pop(FILE_OF_AUDIO)
        row_split = split
        for name, value in list(content.items()):
            if column_name(name) in COLUMNS["audio"] and isinstance(value, str):
                content[name] = str(Path(split, value))
                # One table for all splits lies above their folders.
                if "/" in value and not row_split:
                    row_split = split_in_name(value)
        if not content.get("split"):
            content["split"] = row_split
        yield Row(row.line, content, place)
