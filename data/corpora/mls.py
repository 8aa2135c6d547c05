"""Multilingual LibriSpeech: read books in eight languages, `{train,dev,test}/audio/SPEAKER/BOOK/*.{flac,opus}`.

Each split has its texts in `transcripts.txt`, a name and a text parted by a tab. Ten hours of train are marked as a
small training set of their own, nine of them apart from one.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from data.audio import Clip
from data.corpora.corpus import Corpus, Selection
from data.corpora.published import PublishedCorpusConfig, RowCollector, find_folder, name_and_text
from data.errors import DataError
from data.manifests.rows import read_lines

LANGUAGES = {
    "dutch": "nl",
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "polish": "pl",
    "portuguese": "pt",
    "spanish": "es",
}
# Patterns of the lists of the small training sets.
LIMITED = {"1h": ("1hr/*/handles.txt",), "9h": ("9hr/handles.txt",), "10h": ("9hr/handles.txt", "1hr/*/handles.txt")}


class MlsConfig(PublishedCorpusConfig, frozen=True, extra="forbid"):
    """Where one language of Multilingual LibriSpeech lies, and how much of it is trained on."""

    name: Literal["mls"] = "mls"
    root: Path = Field(description="the folder of a language, mls_LANGUAGE or mls_LANGUAGE_opus")
    train: Literal["all", "10h", "9h", "1h"] = Field(
        default="all", description="all of train, or one of the small training sets in it"
    )


def select(config: MlsConfig, seed: int) -> Selection:
    """The utterances of train, dev and test. Nothing is random here: `seed` is not used.

    Raises DataError when the corpus is not there, or its folder is not called after a language of it.
    """
    folder = find_folder(config.root, (), "*/transcripts.txt", "a language of Multilingual LibriSpeech")
    name = config.root.absolute().name.removeprefix("mls_").removesuffix("_opus")
    if name not in LANGUAGES:
        raise DataError(
            f"{config.root} is not called mls_LANGUAGE or mls_LANGUAGE_opus, with one of {', '.join(LANGUAGES)}; give "
            "the folder the name that it was published under, which says the language."
        )
    rows = RowCollector(config, LANGUAGES[name])
    for split in ("train", "dev", "test"):
        recordings: dict[str, Path] = {}
        for path in (folder / split / "audio").glob("*/*/*"):
            if path.suffix in (".flac", ".opus"):
                recordings[path.stem] = path
        handles = None
        if split == "train" and config.train != "all":
            handles = _handles(folder / "train" / "limited_supervision", config.train)
        _add_split(folder / split / "transcripts.txt", split, recordings, handles, rows)
    return rows.selection()


CORPUS = Corpus(MlsConfig, select)


def _handles(folder: Path, train: str) -> set[str]:
    """The names of the rows of a small training set."""
    handles: set[str] = set()
    for pattern in LIMITED[train]:
        for path in folder.glob(pattern):
            handles |= {line.strip() for line in read_lines(path)}
    if not handles:
        raise DataError(
            f"{folder} lists no rows of {train} ({' and '.join(LIMITED[train])}); unpack them, or set corpus.train to "
            "all."
        )
    return handles


def _add_split(
    transcripts: Path, split: str, recordings: dict[str, Path], handles: set[str] | None, rows: RowCollector
) -> None:
    without_text = set(recordings)
    # A language may be unpacked without its train.
    lines = read_lines(transcripts) if transcripts.is_file() else []
    for line, content in enumerate(lines, 1):
        name, text = name_and_text(content)
        without_text.discard(name)
        if not name or (handles is not None and name not in handles):
            continue
        speaker, _, rest = name.partition("_")
        # What is not there is rejected where it is to be decoded, under the name that it should have.
        book = rest.partition("_")[0]
        expected = transcripts.parent / "audio" / speaker / book / f"{name}.flac"
        clip = Clip(recordings.get(name, expected))
        rows.add(name, clip, text, split, speaker=speaker, line=line, place=transcripts)
    for name in sorted(without_text):
        rows.reject(f"{recordings[name].name} has no line there", place=transcripts, key=name)
