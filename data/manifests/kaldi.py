"""Kaldi data directories as manifests: wav.scp, segments, text, utt2spk and utt2lang.

One row per utterance: per line of `segments`, or of `wav.scp` where there are no segments. A folder of such
directories (train, dev, test) is read whole, each directory as the split of its name. `wav.scp` names files: a command
that ends in | is never run, and its utterances are rejected, as are those of archives (x.ark:123). Paths count from the
directory or, as for Kaldi, from the working folder.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.manifests.rows import NOT_UTF8, UNDECODED, Columns, Row, beside_or_here, read_lines

FILES = ("wav.scp", "segments", "text", "utt2spk", "utt2lang")
# What says the same in other words, or is made of the audio: nothing is lost where these are not read.
DERIVED = (
    "spk2utt",
    "utt2dur",
    "reco2dur",
    "utt2num_frames",
    "utt2num_samples",
    "frame_shift",
    "feats.scp",
    "cmvn.scp",
)

logger = logging.getLogger(__name__)


class _Line(NamedTuple):
    number: int
    value: str


def is_kaldi(folder: Path) -> bool:
    """Whether a folder is a data directory."""
    return (folder / "wav.scp").is_file()


def kaldi_files(directory: Path) -> list[Path]:
    """The files that are read of a data directory."""
    return [directory / name for name in FILES if (directory / name).is_file()]


def read_kaldi(directory: Path, root: Path, split: str) -> Iterator[Row]:
    """The rows of one data directory in the folder `root`, in the columns of `data.manifests`; `split` is empty where
    the directory names none."""
    tables: dict[str, dict[str, _Line]] = {}
    for name in FILES:
        tables[name] = {}
        if (directory / name).is_file():
            place = f"{split}/{name}".strip("/")
            yield from _read_table(directory / name, tables[name], place)
    files = {path.name for path in directory.iterdir() if path.is_file()}
    not_read = sorted(files - {*FILES, *DERIVED})
    if not_read:
        logger.warning("%s: these files are not read: %s.", directory, ", ".join(not_read[:20]))

    # The file of which every line is an utterance.
    listed = "wav.scp"
    if (directory / "segments").is_file():
        listed = "segments"
    for key, line in tables[listed].items():
        if listed == "segments":
            content = _segment(directory, line.value, tables["wav.scp"])
        else:
            content = _audio(directory, line.value)
        if isinstance(content, dict):
            labels = {"key": key, "split": split}
            for column, table in (("text", "text"), ("speaker", "utt2spk"), ("language", "utt2lang")):
                label = tables[table].get(key, _Line(0, ""))
                labels[column] = label.value
            content |= labels
            # From the folder of the whole corpus.
            content["audio"] = str(Path(directory.relative_to(root), content["audio"]))
            # The name of a file may be in any encoding.
            if UNDECODED.search("".join(labels.values())):
                content = NOT_UTF8
        yield Row(line.number, content, f"{split}/{listed}".strip("/"))
    for key, line in tables["text"].items():
        if key not in tables[listed]:
            yield Row(line.number, f"{key} has a text and is not in {listed}", f"{split}/text".strip("/"))


def _read_table(path: Path, table: dict[str, _Line], place: str) -> Iterator[Row]:
    """Fill a table with the lines of a file by their first word; yield the lines whose word was there before."""
    for number, content in enumerate(read_lines(path), 1):
        key, *values = re.split(r"[ \t]+", content.strip(), maxsplit=1)
        if key in table:
            yield Row(number, f"key {key} is already that of line {table[key].number}", place)
        elif key:
            table[key] = _Line(number, "".join(values))


def _segment(directory: Path, value: str, recordings: dict[str, _Line]) -> Columns | str:
    # RECORDING START END, and in newer directories the channel.
    fields = value.split()
    if len(fields) not in (3, 4):
        return f"a segment has an utterance, a recording, start and end, not {len(fields) + 1} fields"
    if fields[0] not in recordings:
        return f"its recording {fields[0]} is not in wav.scp"
    columns = _audio(directory, recordings[fields[0]].value)
    if isinstance(columns, str):
        return columns
    columns["start_s"] = fields[1]
    # Kaldi's way to say: to the end of the recording.
    if fields[2] not in ("-1", "-1.0"):
        columns["end_s"] = fields[2]
    if len(fields) == 4:
        # Telephone corpora name their two sides.
        columns["channel"] = {"A": "0", "B": "1"}.get(fields[3], fields[3])
    return columns


def _audio(directory: Path, name: str) -> Columns | str:
    if not name:
        return "wav.scp names no audio file for it"
    if name.endswith("|"):
        return f"wav.scp names a command, which is not run ({name[:80]}); write its output to a file and name that"
    if name == "-" or name.startswith("|"):
        return f"wav.scp names a stream ({name[:80]}), and recordings are read from files alone"
    archive, _, offset = name.rpartition(":")
    if archive and offset.isdecimal():
        return f"wav.scp names a place in an archive ({name[:80]}); write the recordings as files of their own"
    return {"audio": beside_or_here(directory, name)}
