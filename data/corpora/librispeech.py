"""LibriSpeech and mini LibriSpeech: read English books, `SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac`.

Each chapter has its texts, in capitals without punctuation, in `SPEAKER-CHAPTER.trans.txt`. The subsets of training and
those of development are joined to one split each, of which the latter may be splits of their own besides; every test
set is a split of its own, as results are reported.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from data.audio import Clip
from data.corpora.corpus import Corpus, Selection
from data.corpora.published import PublishedCorpusConfig, RowCollector, find_folder, name_and_text
from data.errors import DataError
from data.manifests.rows import read_lines

TrainSubset = Literal["train-clean-100", "train-clean-360", "train-other-500", "train-clean-5"]
DevSubset = Literal["dev-clean", "dev-other", "dev-clean-2"]
TestSubset = Literal["test-clean", "test-other"]


class LibriSpeechConfig(PublishedCorpusConfig, frozen=True, extra="forbid"):
    """Where LibriSpeech lies, and which of its subsets are used."""

    name: Literal["librispeech"] = "librispeech"
    root: Path = Field(description="the folder LibriSpeech, or the one that it was unpacked in")
    train: tuple[TrainSubset, ...] = Field(default=(), description="subsets of train; none: all that are there")
    dev: tuple[DevSubset, ...] = Field(default=(), description="subsets of dev; none: all that are there")
    dev_splits: Literal["joined", "each"] = Field(
        default="joined",
        description="joined: the split dev; each: also a split of the name of every subset of dev, to be evaluated",
    )
    test: tuple[TestSubset, ...] = Field(
        default=(), description="test sets, each a split of its name; none: all that are there"
    )


def select(config: LibriSpeechConfig, seed: int) -> Selection:
    """The utterances of the chosen subsets. Nothing is random here: `seed` is not used.

    Raises DataError when a subset is not there, or nothing in it can be used.
    """
    folder = find_folder(config.root, ("LibriSpeech",), "*-*/*/*", "LibriSpeech")
    rows = RowCollector(config, "en")
    for subset in _subsets(folder, "train", config.train):
        _add_subset(folder / subset, "train", rows)
    for subset in _subsets(folder, "dev", config.dev):
        _add_subset(folder / subset, "dev", rows)
        # Trainings validate on one split, and results are reported on each.
        if config.dev_splits == "each":
            _add_subset(folder / subset, subset, rows)
    for subset in _subsets(folder, "test", config.test):
        _add_subset(folder / subset, subset, rows)
    return rows.selection()


CORPUS = Corpus(LibriSpeechConfig, select)


def _subsets(folder: Path, kind: str, chosen: Sequence[str]) -> list[str]:
    present = sorted(path.name for path in folder.glob(f"{kind}-*") if path.is_dir())
    if not chosen:
        return present
    missing = set(chosen) - set(present)
    if missing:
        names = ", ".join(sorted(missing))
        others = ", ".join(present) or "nothing"
        raise DataError(
            f"{folder} has no {names}; of {kind} it has {others}. Unpack the subset there, or set corpus.{kind} to "
            "those that are there."
        )
    return sorted(set(chosen))


def _add_subset(subset: Path, split: str, rows: RowCollector) -> None:
    # Sorted, so that the order does not depend on the file system.
    for chapter in sorted(subset.glob("*/*")):
        if not chapter.is_dir():
            continue
        speaker = chapter.parent.name
        without_text = {path.stem for path in chapter.glob("*.flac")}
        transcripts = chapter / f"{speaker}-{chapter.name}.trans.txt"
        # A chapter of which only the recordings are there is one of rejected rows.
        lines: list[str] = []
        if transcripts.is_file():
            lines = read_lines(transcripts)
        for line, content in enumerate(lines, 1):
            name, text = name_and_text(content)
            if not name:
                continue
            without_text.discard(name)
            clip = Clip(chapter / f"{name}.flac")
            rows.add(name, clip, text, split, speaker=speaker, line=line, place=transcripts)
        for name in sorted(without_text):
            rows.reject(f"{name}.flac has no line there", place=transcripts, key=name)
