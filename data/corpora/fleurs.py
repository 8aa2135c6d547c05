"""FLEURS: the same sentences read in 102 languages, `LANGUAGE/{train,dev,test}.tsv` and `LANGUAGE/audio/SPLIT/*.wav`.

The lists have no first line with names: sentence, recording, text as written, text normalised, characters, samples,
gender. A sentence is read by several speakers, who are not named.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from data.audio import Clip
from data.corpora.corpus import Corpus, Selection
from data.corpora.published import PublishedCorpusConfig, RowCollector, choose_language
from data.errors import DataError
from data.manifests.rows import read_lines

NUM_COLUMNS = 7
TEXT_COLUMN = {"raw": 2, "normalized": 3}


class FleursConfig(PublishedCorpusConfig, frozen=True, extra="forbid"):
    """Where FLEURS lies, which language, and which of its texts."""

    name: Literal["fleurs"] = "fleurs"
    root: Path = Field(description="the folder of a language, or the one that holds those of several")
    language: str = Field(default="", max_length=100, description="as its folder is called: it_it; none: the only one")
    text: Literal["normalized", "raw"] = Field(
        default="normalized", description="normalized: lower case, without punctuation; raw: as written"
    )


def select(config: FleursConfig, seed: int) -> Selection:
    """The rows of train, dev and test. Nothing is random here: `seed` is not used.

    Raises DataError when the language is not there or its archives are still packed.
    """
    folder = _language_folder(config)
    rows = RowCollector(config, config.language or folder.absolute().name)
    for split in ("train", "dev", "test"):
        path = folder / f"{split}.tsv"
        if path.is_file():
            _add_split(path, split, TEXT_COLUMN[config.text], rows)
    return rows.selection()


CORPUS = Corpus(FleursConfig, select)


def _add_split(path: Path, split: str, text_column: int, rows: RowCollector) -> None:
    audio = path.parent / "audio"
    archive = audio / f"{split}.tar.gz"
    if archive.is_file() and not (audio / split).is_dir():
        raise DataError(f"{archive} is not unpacked. Run: cd {audio} && tar xzf {archive.name}")
    without_text = {recording.name for recording in (audio / split).glob("*.wav")}
    for line, content in enumerate(read_lines(path), 1):
        fields = content.rstrip("\r\n").split("\t")
        if len(fields) != NUM_COLUMNS:
            rows.reject(f"the row has {len(fields)} fields, not {NUM_COLUMNS}", line=line, place=path)
            continue
        name = fields[1]
        text = fields[text_column]
        without_text.discard(name)
        clip = Clip(audio / split / name)
        # Not the number of the sentence, which several speakers read.
        key = Path(name).stem
        rows.add(key, clip, text, split, line=line, place=path)
    for name in sorted(without_text):
        rows.reject(f"{name} has no line there", place=path, key=Path(name).stem)


def _language_folder(config: FleursConfig) -> Path:
    # The evaluation of a language needs no train.
    if any((config.root / name).is_file() for name in ("train.tsv", "test.tsv")):
        return config.root
    return choose_language(
        config.root,
        config.language,
        {path.parent.name: path.parent for path in config.root.glob("*/t*.tsv")},
        absent="not FLEURS: neither it nor a folder in it has train.tsv",
    )
