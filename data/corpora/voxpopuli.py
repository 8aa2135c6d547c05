"""VoxPopuli, transcribed part: speeches in the European Parliament, listed in `asr_{train,dev,test}.tsv`.

Both published layouts are read: that of its own script (get_asr_data.py), `transcribed_data/LANGUAGE/YEAR/ID.ogg`, and
that of the Hugging Face Hub, `data/LANGUAGE/SPLIT/SPLIT_part_N.tar.gz`, whose archives are unpacked where they lie:
their members are found by their names alone, `ID.wav`. Columns are read by their names.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from data.audio import Clip
from data.corpora.corpus import Corpus, Selection
from data.corpora.published import PublishedCorpusConfig, RowCollector, choose_language
from data.manifests.rows import read_rows


class VoxPopuliConfig(PublishedCorpusConfig, frozen=True, extra="forbid"):
    """Where VoxPopuli lies, which language, and which of its texts."""

    name: Literal["voxpopuli"] = "voxpopuli"
    root: Path = Field(description="the folder with transcribed_data, or that of a language")
    language: str = Field(default="", max_length=100, description="as its folder is called: en, de; none: the only one")
    text: Literal["normalized", "raw"] = Field(
        default="normalized", description="normalized: numbers in words; raw: as the parliament published it"
    )


def select(config: VoxPopuliConfig, seed: int) -> Selection:
    """The rows of train, dev and test. Nothing is random here: `seed` is not used.

    Raises DataError when the language is not there or a list lacks a column.
    """
    folder = _language_folder(config)
    # en_accented holds English that others speak, a test set alone.
    rows = RowCollector(config, folder.absolute().name.partition("_")[0])
    column = f"{config.text}_text"
    for split in ("train", "dev", "test"):
        path = folder / f"asr_{split}.tsv"
        # Some languages have no train.
        if not path.is_file():
            continue
        # Archives are unpacked into parts, of which nothing says what is in which.
        unpacked = {recording.stem: recording for recording in (folder / split).rglob("*.wav")}
        without_text = set(unpacked)
        archives = _packed_archives(folder / split)
        for row in read_rows(path, (("id", "id_"), (column,))):
            if isinstance(row.content, str):
                rows.reject(row.content, line=row.line, place=path)
                continue
            name = str(row.content.get("id") or row.content.get("id_") or "")
            if not name:
                rows.reject("it names no audio file", line=row.line, place=path)
                continue
            speaker = row.content.get("speaker_id", "")
            if speaker == "None":
                speaker = ""
            without_text.discard(name)
            # The year that a name begins with is that of the session.
            recording = unpacked.get(name, folder / name[:4] / f"{name}.ogg")
            if name not in unpacked and archives and not recording.is_file():
                rows.reject(
                    f"{name}.wav is not there, and one of {archives} is not unpacked", line=row.line, place=path
                )
                continue
            rows.add(name, Clip(recording), row.content[column], split, speaker=speaker, line=row.line, place=path)
        for name in sorted(without_text):
            rows.reject(f"{name}.wav has no line there", place=path, key=name)
    return rows.selection()


CORPUS = Corpus(VoxPopuliConfig, select)


def _packed_archives(folder: Path) -> str:
    """The archives of a split beside which nothing of their name was unpacked; empty where there are none."""
    names: list[str] = []
    for archive in sorted(folder.glob("*.tar.gz")):
        if not (folder / archive.name.removesuffix(".tar.gz")).is_dir():
            names.append(archive.name)
    if len(names) > 3:
        names[3:] = ["others"]
    return ", ".join(names)


def _language_folder(config: VoxPopuliConfig) -> Path:
    if next(config.root.glob("asr_*.tsv"), None) is not None:
        return config.root
    folders: dict[str, Path] = {}
    for parent in (config.root, config.root / "transcribed_data", config.root / "data"):
        for path in sorted(parent.glob("*/asr_*.tsv")):
            folders[path.parent.name] = path.parent
    return choose_language(
        config.root,
        config.language,
        folders,
        absent="not VoxPopuli: there is no asr_train.tsv in it, in LANGUAGE, transcribed_data/LANGUAGE or "
        "data/LANGUAGE",
    )
