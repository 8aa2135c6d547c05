"""Text to token ids and back, by a SentencePiece model trained on the corpus, or given.

Ids 0 to 3 are fixed: 0 is the CTC blank, 1 the unknown piece, 2 and 3 begin and end a sentence. The text is
taken as it is, except that runs of spaces count as one: the case of letters and punctuation are the corpus'
decision. The same texts give the same model, byte for byte. Refused, with a `DataError`: texts without a
character, more pieces than the texts can give, and a folder whose model is missing or was changed.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import sentencepiece
from pydantic import BaseModel, Field, field_validator, model_validator

from data.errors import DataError
from data.files import read_bounded, read_json
from data.text.given_model import MAX_MODEL_BYTES, MAX_PIECES, read_given_model

BLANK = 0
UNKNOWN = 1
BEGIN = 2
END = 3
NUM_FIXED = 4

# Room for the fixed pieces and a few characters.
MIN_PIECES = 8
NUM_BYTES = 256
FIXED_PIECES = ("<blank>", "<unk>", "<s>", "</s>")
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
MAX_SYMBOLS = 10_000
MAX_SYMBOL_CHARACTERS = 100

# Transcripts tokenized at once: enough to amortise the call, few enough for a corpus of millions.
CHUNK = 10_000

logger = logging.getLogger(__name__)


class TokenizerConfig(BaseModel, frozen=True, extra="forbid"):
    """Which pieces the recogniser writes."""

    kind: Literal["char", "unigram", "bpe"] = Field(
        default="char", description="characters, or pieces of words found by the unigram or the BPE method"
    )
    pieces: int = Field(
        default=500,
        ge=MIN_PIECES,
        le=MAX_PIECES,
        description="size of the vocabulary; characters ignore it, as they take what the text needs",
    )
    byte_fallback: bool = Field(
        default=False,
        description="what has no piece of its own is written as its bytes in UTF-8, which take 256 of the pieces",
    )
    user_symbols: tuple[str, ...] = Field(
        default=(),
        max_length=MAX_SYMBOLS,
        description="texts that are one piece wherever they stand, such as marks of events",
    )
    character_coverage: float = Field(
        default=1.0,
        ge=0.98,
        le=1.0,
        description="share of the text whose characters have pieces; the rarest are unknown, or bytes with "
        "byte_fallback. 0.9995 is usual for Chinese and Japanese",
    )
    model: Path | None = Field(
        default=None,
        description="a .model file of SentencePiece that is taken as it is; kind and pieces are then its own",
    )

    @field_validator("user_symbols")
    @classmethod
    def _check_symbols(cls, symbols: tuple[str, ...]) -> tuple[str, ...]:
        for symbol in symbols:
            if not symbol or len(symbol) > MAX_SYMBOL_CHARACTERS or any(map(str.isspace, symbol)):
                raise ValueError(
                    f"{symbol[:MAX_SYMBOL_CHARACTERS]!r} is no symbol: one has 1 to {MAX_SYMBOL_CHARACTERS} characters "
                    "and no space, as spaces part words"
                )
            if symbol in FIXED_PIECES or BYTE_PIECE.fullmatch(symbol):
                raise ValueError(f"{symbol!r} is a piece of every tokenizer. Choose another symbol")
        if len(set(symbols)) < len(symbols):
            raise ValueError("a symbol stands there twice. Name each once")
        return symbols

    @model_validator(mode="after")
    def _check_model(self) -> TokenizerConfig:
        if self.model is not None and (self.byte_fallback or self.user_symbols or self.character_coverage < 1):
            raise ValueError(
                "a given model has its own bytes, symbols and characters: leave out byte_fallback, user_symbols and "
                "character_coverage, or model"
            )
        return self

    @property
    def knows_training_texts(self) -> bool:
        """Whether every character of the texts that it is trained on has a piece, or bytes."""
        return self.model is None and (self.byte_fallback or self.character_coverage == 1.0)


class Tokenizer:
    """Encodes and decodes with a trained SentencePiece model."""

    def __init__(self, model: bytes, kind: str):
        self.kind = kind
        self.model = model
        self._processor: Any = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)

    @classmethod
    def load(cls, folder: Path, description_file: str = "tokenizer.json") -> Tokenizer:
        """The tokenizer that `save` wrote. DataError when it is missing or its bytes were changed.

        `description_file` is another one in the layout of Hugging Face, which has a meaning of its own for that name.
        """
        try:
            description = read_json(folder / description_file)
            model = read_bounded(folder / "tokenizer.model", MAX_MODEL_BYTES)
            kind = description["kind"]
            expected_sha256 = description["sha256"]
            if not isinstance(kind, str):
                raise ValueError(f"its kind is {str(kind)[:40]}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"No tokenizer can be read from {folder} ({error!r:.300}). It must hold the {description_file} and "
                "tokenizer.model that training wrote; copy both, or train the tokenizer again."
            ) from error

        sha256 = hashlib.sha256(model).hexdigest()
        if sha256 != expected_sha256:
            raise DataError(
                f"{folder / 'tokenizer.model'} is not the model that {description_file} describes: its SHA-256 "
                f"is {sha256}, expected {expected_sha256}. Another one would give other ids; restore the file."
            )
        try:
            tokenizer = cls(model, kind)
            vocabulary_size = tokenizer.vocabulary_size
        # SentencePiece's own, for bytes that are no model of it.
        except (RuntimeError, OSError, ValueError) as error:
            raise DataError(
                f"{folder / 'tokenizer.model'} is no model of SentencePiece ({error}). Copy the folder again, or train "
                "the tokenizer again."
            ) from None
        if not END < vocabulary_size <= MAX_PIECES:
            raise DataError(
                f"{folder / 'tokenizer.model'} has {vocabulary_size} pieces; a tokenizer has from {END + 1} to "
                f"{MAX_PIECES}. Train it again."
            )
        return tokenizer

    def save(self, folder: Path) -> None:
        """Writes tokenizer.model and tokenizer.json into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(self.model)
        description = {"kind": self.kind, "sha256": self.sha256, "vocabulary_size": self.vocabulary_size}
        (folder / "tokenizer.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")

    @property
    def sha256(self) -> str:
        """Hash of the model's bytes."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, the four fixed ones included."""
        return self._processor.get_piece_size()

    @property
    def pieces(self) -> list[str]:
        """The text of every id; SentencePiece writes the space before a word as U+2581."""
        return [self._processor.id_to_piece(piece) for piece in range(self.vocabulary_size)]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without begin and end."""
        return self._processor.encode(text, out_type=int)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, faster than one by one."""
        return self._processor.encode(list(texts), out_type=int, num_threads=1)

    def unknown_characters(self, text: str) -> list[str]:
        """The characters of a text that no piece writes, each once, in their order."""
        unknown: list[str] = []
        for character in dict.fromkeys(text):
            if UNKNOWN in self.encode(character):
                unknown.append(character)
        return unknown

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; blanks, begins and ends are not written."""
        pieces: list[int] = []
        for piece in map(int, ids):
            if piece not in (BLANK, BEGIN, END):
                pieces.append(piece)
        return self._processor.decode(pieces)


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig, folder: Path) -> Tokenizer:
    """Trains a tokenizer on the texts and saves it into the folder; a given model is saved as it is.

    DataError when the texts cannot give it, or the given model cannot be used.
    """
    if config.model is not None:
        given, kind = read_given_model(config.model)
        tokenizer = Tokenizer(given, kind)
        tokenizer.save(folder)
        return tokenizer

    characters = config.kind == "char"
    num_pieces = config.pieces
    options: dict[str, Any] = {}
    if config.user_symbols:
        options["user_defined_symbols"] = list(config.user_symbols)
    if config.byte_fallback:
        options["byte_fallback"] = True
    # SentencePiece looks at the coverage only where it need not take all.
    all_characters = characters and config.character_coverage == 1.0
    if all_characters:
        # It takes what it needs, but refuses a number below that of the pieces which are no characters.
        num_pieces = max(num_pieces, NUM_FIXED + len(config.user_symbols) + NUM_BYTES * config.byte_fallback)
    elif characters:
        num_pieces = MAX_PIECES
    texts = _CountedTexts(texts)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(  # pyright: ignore[reportAttributeAccessIssue]
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=config.kind,
            vocab_size=num_pieces,
            use_all_vocab=all_characters,
            # Pieces of words need to see where the first word begins; for characters it would be one more token.
            add_dummy_prefix=not characters,
            # Case, punctuation and composed characters are the corpus' decision.
            normalization_rule_name="identity",
            # By default 1, so that no character of the training texts becomes unknown.
            character_coverage=config.character_coverage,
            # By default SentencePiece ignores transcripts above 4192 bytes and does not say so.
            max_sentence_length=1_000_000,
            pad_id=BLANK,
            pad_piece="<blank>",
            unk_id=UNKNOWN,
            bos_id=BEGIN,
            eos_id=END,
            num_threads=1,
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        raise DataError(_why_no_tokenizer(str(error), config, texts)) from error
    tokenizer = Tokenizer(model.getvalue(), config.kind)
    tokenizer.save(folder)
    return tokenizer


class _CountedTexts:
    """Texts, and after they were read their number and their characters: a refusal names both."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.number = 0
        self.characters: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.number += 1
            self.characters.update(text)
            yield text


def _why_no_tokenizer(message: str, config: TokenizerConfig, texts: _CountedTexts) -> str:
    """The refusal of SentencePiece in terms of the recipe: its own words name options that a recipe does not have."""
    # SentencePiece tells the sizes that the texts allow in its message alone.
    largest = re.search(r"Vocabulary size too high .* value <= (\d+)", message)
    smallest = re.search(r"Vocabulary size is smaller than required_chars. \d+ vs (\d+)", message)
    sentences = f"{texts.number} {'sentence' if texts.number == 1 else 'sentences'}"
    seen = f"{sentences} of {len(texts.characters)} distinct characters"
    refusal = f"The training transcripts do not give a {config.kind} tokenizer of {config.pieces} pieces: they have"
    if largest:
        remedy = "Set tokenizer.kind to char"
        if int(largest[1]) >= MIN_PIECES:
            remedy = f"Set tokenizer.pieces to {largest[1]} or less, or tokenizer.kind to char"
        return f"{refusal} at most {largest[1]}, being {seen}. {remedy}, or give more transcripts."
    if smallest:
        beside = [f"{NUM_FIXED} fixed ones"]
        if config.byte_fallback:
            beside.append(f"{NUM_BYTES} of bytes")
        if config.user_symbols:
            beside.append(f"{len(config.user_symbols)} user symbols")
        return (
            f"{refusal} {seen}, each of which needs a piece, beside {' and '.join(beside)}. "
            f"Set tokenizer.pieces to {smallest[1]} or more, or tokenizer.kind to char."
        )
    if not "".join(texts.characters).strip():
        return (
            f"The training transcripts hold no character to make a tokenizer of ({sentences}). Look whether the "
            "rows of the split train hold text."
        )
    return (
        f"The training transcripts, {seen}, give no {config.kind} tokenizer of {config.pieces} pieces. Set "
        f"tokenizer.kind to char, or another number of tokenizer.pieces. SentencePiece says: {message.strip()!r}."
    )


def token_lengths(
    transcripts: Iterable[str], tokenizer: Tokenizer
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Per transcript the number of tokens, and the fewest frames from which CTC can write them.

    Between equal neighbours CTC needs a blank, so the second is tokens plus adjacent repeats. A run of
    characters that the vocabulary lacks is one unknown token; their number is logged.
    """
    # Empty arrays first: there may be no transcript at all.
    tokens = [np.empty(0, dtype=np.int32)]
    min_frames = [np.empty(0, dtype=np.int32)]
    num_unknown = 0
    num_with_unknown = 0
    remaining = iter(transcripts)
    while True:
        chunk = list(itertools.islice(remaining, CHUNK))
        if not chunk:
            break
        encoded = tokenizer.encode_all(chunk)
        lengths = np.fromiter(map(len, encoded), np.int32, len(encoded))
        ids = np.fromiter(itertools.chain.from_iterable(encoded), np.int32, int(lengths.sum()))
        transcript = np.repeat(np.arange(len(encoded)), lengths)

        # Neighbours across the end of a transcript are no repeats.
        same_token = ids[1:] == ids[:-1]
        same_transcript = transcript[1:] == transcript[:-1]
        repeated_in = transcript[1:][same_token & same_transcript]
        repeats = np.bincount(repeated_in, minlength=len(encoded)).astype(np.int32)
        tokens.append(lengths)
        min_frames.append(lengths + repeats)

        is_unknown = ids == UNKNOWN
        num_unknown += int(is_unknown.sum())
        num_with_unknown += len(np.unique(transcript[is_unknown]))

    all_tokens = np.concatenate(tokens)
    if num_unknown:
        logger.warning(
            "%d tokens in %d of %d transcripts are unknown to the tokenizer; no model can write them.",
            num_unknown,
            num_with_unknown,
            len(all_tokens),
        )
    return all_tokens, np.concatenate(min_frames)
