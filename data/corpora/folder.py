"""A user's own recordings, listed in a manifest.

A manifest (JSONL, JSON, CSV, TSV, or one of lhotse or Kaldi) has one utterance per row; `data.manifests.manifest` says
which columns it may have. Texts are normalised by explicit rules (`data.text.transcripts`), and rows that name no split
are dealt to train, dev and test by a hash of their text, so that a sentence recorded many times is never in both
training and test. Splits of known other names, such as valid or Train, are read as train, dev and test, and the log
says so. What cannot be used comes back with its reason.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from data.audio import RejectedRow, Utterance
from data.corpora.corpus import BaseCorpusConfig, Corpus, Selection
from data.corpora.hashed_splits import split_by_hash
from data.corpora.rejections import describe_rejections
from data.errors import DataError
from data.manifests.manifest import read_manifest
from data.manifests.splits import canonical_split
from data.text.transcripts import RULES_VERSION, normalize_text, split_key

logger = logging.getLogger(__name__)


class FolderConfig(BaseCorpusConfig, frozen=True, extra="forbid"):
    """Which manifest, and what is done to its texts and splits."""

    name: Literal["folder"] = "folder"
    manifest: Path = Field(
        description="a .jsonl, .json, .csv or .tsv file, whose audio paths are relative to it; lhotse's cuts or "
        "supervisions; a .tar, .parquet or .arrow file; a folder of Kaldi's, lhotse's (Shar), NeMo's (tars), Hugging "
        "Face's (audio folder, Parquet, save_to_disk) or WebDataset's, or with one such folder per split"
    )
    normalize: Literal["lower", "none"] = Field(
        default="lower", description="lower: texts in lower case; none: as written"
    )
    punctuation: Literal["remove", "keep"] = Field(
        default="remove",
        description="remove: punctuation and symbols become spaces, except an apostrophe between letters. Tags such as "
        "<unk> and [noise] are removed in both cases",
    )
    language: str = Field(
        default="",
        max_length=100,
        description="of rows that name none, as in tr or tr-TR; lower case depends on it",
    )
    untranscribed: Literal["reject", "keep"] = Field(
        default="reject",
        description="rows with an empty text or none. keep: for stages that learn without transcripts; those that name "
        "no split go to train",
    )
    dev_fraction: float = Field(
        default=0.05, ge=0, lt=1, description="share of the texts without a split that go to dev"
    )
    test_fraction: float = Field(
        default=0.05, ge=0, lt=1, description="share of the texts without a split that go to test"
    )

    @property
    def text_rules(self) -> dict[str, Any]:
        """The version of the rules of `data.text.transcripts`, and the choices among them."""
        return {
            "version": RULES_VERSION,
            "normalize": self.normalize,
            "punctuation": self.punctuation,
            "language": self.language,
        }

    @model_validator(mode="after")
    def _some_left(self) -> "FolderConfig":
        if self.dev_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"dev_fraction {self.dev_fraction:g} and test_fraction {self.test_fraction:g} leave nothing "
                "for train; their sum must be below 1"
            )
        return self


def select(config: FolderConfig, seed: int) -> Selection:
    """The usable rows of the manifest, normalised, each in its split. Nothing is random here: `seed` is not used.

    Raises DataError when the manifest cannot be read or none of its rows can be used.
    """
    rows, rejected = read_manifest(config.manifest, untranscribed=config.untranscribed == "keep")
    num_rows = len(rows) + len(rejected)
    utterances: list[Utterance] = []
    renamed: dict[str, str] = {}
    for row in rows:
        language = row.language or config.language
        text = normalize_text(
            row.text,
            lower=config.normalize == "lower",
            punctuation=config.punctuation == "keep",
            language=language,
        )
        # An empty text stays: the manifest's reader lets it pass only where it is wanted. An emoji is no word.
        if row.text and not any(character.isalnum() for character in text):
            rejected.append(RejectedRow(row.line, f"nothing is left of its text {row.text[:80]!r}", row.key))
            continue
        split = canonical_split(row.split)
        if split != row.split:
            renamed[row.split] = split
        utterances.append(replace(row, text=text, split=split, language=language))

    if not utterances:
        problem = f"{config.manifest} has no rows"
        if rejected:
            problem = f"None of the {num_rows} rows of {config.manifest} can be used, {describe_rejections(rejected)}"
        raise DataError(f"{problem}. Every row names a recording, relative to the manifest, and its text.")
    if renamed:
        names = ", ".join(f"{name} is read as {split}" for name, split in sorted(renamed.items()))
        logger.warning("Splits of %s have other names here: %s.", config.manifest, names)
    assert len(utterances) + len(rejected) == num_rows, "a row of the manifest was lost"
    return Selection(_with_splits(utterances, config), rejected)


CORPUS = Corpus(FolderConfig, select)


def _with_splits(utterances: list[Utterance], config: FolderConfig) -> list[Utterance]:
    """Give rows without a split that of a row with the same words, or else one by the hash of the words; those without
    a text go to train."""
    split_of_words: dict[str, str] = {}
    for utterance in utterances:
        if utterance.split and utterance.text:
            split_of_words.setdefault(split_key(utterance.text), utterance.split)

    placed: list[Utterance] = []
    for utterance in utterances:
        if not utterance.split and not utterance.text:
            utterance = replace(utterance, split="train")
        elif not utterance.split:
            words = split_key(utterance.text)
            split = split_of_words.get(words)
            if not split:
                split = split_by_hash(words, config.dev_fraction, config.test_fraction)
            utterance = replace(utterance, split=split)
        placed.append(utterance)
    return placed
