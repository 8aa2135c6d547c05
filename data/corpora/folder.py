"""A user's own recordings, listed in a manifest.

A manifest (JSONL, CSV or TSV) has one utterance per row; `data.manifest` says which columns it may have.
Texts are normalised by explicit rules, and rows that name no split are dealt to train, dev and test by a
hash of their text, so that a sentence recorded many times is never in both training and test. Splits of known other
names, such as valid or Train, are read as train, dev and test, and the log says so. What cannot be used comes back with
its reason.
"""

import hashlib
import logging
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

# What other tools call the splits that trainings read, in any case.
SPLIT_SYNONYMS = {
    "train": ("train", "training", "trn"),
    "dev": ("dev", "devel", "development", "valid", "validation", "validate", "val"),
    "test": ("test", "testing", "tst"),
}

logger = logging.getLogger(__name__)


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
    renamed: dict[str, str] = {}
    for row in rows:
        text = normalize_text(row.text, lower=lower, punctuation=punctuation, language=row.language)
        # An empty text stays: the manifest's reader lets it pass only where it is wanted. An emoji is no word.
        if not row.text or any(character.isalnum() for character in text):
            split = canonical_split(row.split)
            if split != row.split:
                renamed[row.split] = split
            utterances.append(replace(row, text=text, split=split))
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
    if renamed:
        names = ", ".join(f"{name} is read as {split}" for name, split in sorted(renamed.items()))
        logger.warning("Splits of %s have other names here: %s.", config.manifest, names)
    rejected.sort(key=lambda row: row.line)
    return Selection(_with_splits(utterances, config), rejected)


def canonical_split(name: str) -> str:
    """What a split is called here: train, dev or test where its name means one of them, else as it is."""
    for split, synonyms in SPLIT_SYNONYMS.items():
        if name.lower() in synonyms:
            return split
    return name


CORPUS = Corpus(FolderConfig, select)

# Events and annotations: <unk>, [noise], {um}, <COMMA>; in round brackets, which writers use too, known ones alone.
TAGS = re.compile(
    r"<[/\w][^<>]*>|\[[^\W\d][^\[\]]*\]|\{[^\W\d][^{}]*\}"
    r"|\((?:laughter|laughs|noise|cough|breath|music|applause|silence|inaudible|unintelligible|crosstalk)\)",
    re.IGNORECASE,
)
# What no reader sees: variation selectors and the joiner of graphemes. Other invisible characters are of category Cf.
SELECTORS = re.compile("[\u034f\u180b-\u180d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
JOINERS = "\u200c\u200d"


def normalize_text(text: str, *, lower: bool, punctuation: bool, language: str = "") -> str:
    """NFC, single spaces, no invisible characters; optionally lower case (I is ı in Turkish and Azerbaijani); without
    `punctuation`, tags such as [noise] are removed and characters of Unicode's categories P and S become spaces.

    The typographic apostrophe counts as the plain one, and an apostrophe between two letters is a letter. Joiners stay
    between letters, where Persian and Indic scripts spell with them.
    """
    visible: list[str] = []
    for character in unicodedata.normalize("NFC", SELECTORS.sub("", text)):
        category = unicodedata.category(character)
        if category == "Cc":
            visible.append(" ")
        elif category != "Cf" or character in JOINERS:
            visible.append(character)
    text = "".join(visible)
    if not punctuation:
        text = TAGS.sub(" ", text)
    if lower:
        if language.lower()[:2] in ("tr", "az"):
            text = text.replace("I", "ı")
        # Python's lower case of İ is an i with a second dot above.
        text = text.replace("İ", "i").lower()
    if not punctuation:
        text = _without_symbols(text)
    text = re.sub(rf"(?<!\w)[{JOINERS}]+|[{JOINERS}]+(?!\w)", _joiner_of_letters, text)
    # Lowering and the removals can take a composed character apart or bring two parts together.
    return " ".join(unicodedata.normalize("NFC", text).split())


def _joiner_of_letters(match: re.Match[str]) -> str:
    """The joiner where the characters around it are letters or their marks, else nothing."""
    around = match.string[match.start() - 1 : match.start()] + match.string[match.end() : match.end() + 1]
    if len(around) == 2 and all(unicodedata.category(character)[0] in "LM" for character in around):
        return match[0][0]
    return ""


def _without_symbols(text: str) -> str:
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
    return "".join(characters)


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
