"""A user's own recordings, listed in a manifest.

A manifest (JSONL, CSV or TSV) has one utterance per row; `data.manifest` says which columns it may have.
Texts are normalised by explicit rules, and rows that name no split are dealt to train, dev and test by a
hash of their text, so that a sentence recorded many times is never in both training and test. What cannot be
used comes back with its reason.
"""

import hashlib
import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from data.audio import RejectedRow, Utterance
from data.corpora.corpus import BaseCorpusConfig, Corpus, Selection
from data.errors import DataError
from data.manifest import read_manifest


class FolderConfig(BaseCorpusConfig, frozen=True, extra="forbid"):
    """Which manifest, and what is done to its texts and splits."""

    name: Literal["folder"] = "folder"
    manifest: Path = Field(description="a .jsonl, .csv or .tsv file; its audio paths are relative to it")
    normalize: Literal["lower", "none"] = Field(
        default="lower", description="lower: texts in lower case; none: as written"
    )
    punctuation: Literal["remove", "keep"] = Field(
        default="remove",
        description="remove: punctuation and symbols become spaces, except an apostrophe between letters",
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
    lower = config.normalize == "lower"
    punctuation = config.punctuation == "keep"
    utterances: list[Utterance] = []
    for row in rows:
        text = normalize_text(row.text, lower=lower, punctuation=punctuation)
        # An empty text stays: the manifest's reader lets it pass only where it is wanted.
        if text or not row.text:
            utterances.append(replace(row, text=text))
        else:
            rejected.append(RejectedRow(row.line, f"nothing is left of its text {row.text!r}", row.key))

    if not utterances:
        first = "it has no rows"
        if rejected:
            first = f"line {rejected[0].line}: {rejected[0].reason}"
        raise DataError(
            f"None of the {len(rejected)} rows of {config.manifest} can be used. The first reason: {first}. "
            "Audio paths are relative to the manifest."
        )
    rejected.sort(key=lambda row: row.line)
    return Selection(_with_splits(utterances, config), rejected)


CORPUS = Corpus(FolderConfig, select)


def normalize_text(text: str, *, lower: bool, punctuation: bool) -> str:
    """NFC, single spaces; optionally lower case; without `punctuation`, characters of Unicode's categories P and S
    become spaces.

    The typographic apostrophe counts as the plain one, and an apostrophe between two letters is a letter.
    """
    if lower:
        text = text.lower()
    # After lowering, which can take a composed character apart.
    text = unicodedata.normalize("NFC", text)
    if punctuation:
        return " ".join(text.split())

    # Only between letters: the other apostrophes are quotation marks.
    text = text.replace("’", "'")
    apostrophes = {match.start() for match in re.finditer(r"(?<=[^\W\d_])'(?=[^\W\d_])", text)}
    characters: list[str] = []
    for position, character in enumerate(text):
        is_symbol = unicodedata.category(character)[0] in "PS"
        if is_symbol and position not in apostrophes:
            characters.append(" ")
        else:
            characters.append(character)
    return " ".join("".join(characters).split())


def _with_splits(utterances: list[Utterance], config: FolderConfig) -> list[Utterance]:
    """Give rows without a split that of a row with the same words, or else one by the hash of the words; those without
    a text go to train."""
    split_of_words: dict[str, str] = {}
    for utterance in utterances:
        if utterance.split and utterance.text:
            split_of_words.setdefault(_words(utterance.text), utterance.split)

    placed: list[Utterance] = []
    for utterance in utterances:
        if not utterance.split and not utterance.text:
            utterance = replace(utterance, split="train")
        elif not utterance.split:
            words = _words(utterance.text)
            split = split_of_words.get(words) or _split_by_hash(words, config)
            utterance = replace(utterance, split=split)
        placed.append(utterance)
    return placed


def _words(text: str) -> str:
    """A text without what its normalisation may keep, so that one sentence is one, however it is written."""
    return normalize_text(text, lower=True, punctuation=False) or text


def _split_by_hash(text: str, config: FolderConfig) -> str:
    # A hash and not a generator: a row stays in its split when others are added to the manifest.
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    position = int.from_bytes(digest) / 2**64
    if position < config.test_fraction:
        return "test"
    if position < config.test_fraction + config.dev_fraction:
        return "dev"
    return "train"
