"""n-gram language models in ARPA files (base-10 logarithms, back-off), and scorers over tokens and over words.

p(w | h) is the entry of h w where there is one, else backoff(h) p(w | h without its first word) (Katz, 1987). A word
that the model lacks counts as its `<unk>`, or, without one, as its least probable word. The files of KenLM, SRILM and
`chorus language-model` are read, gzipped or not; anything else is refused with a ValueError that names the line.

The scorers work with any `LanguageModel`: with an `NgramModel` from an ARPA file, or with a model of KenLM
(`kenlm_model.py`).
"""

import gzip
import math
import re
import zlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from model.recognizer import END, START

SENTENCE_START = "<s>"
SENTENCE_END = "</s>"
UNKNOWN_WORDS = ("<unk>", "<UNK>")
# No model has this word, so that it scores as an unknown one.
NO_WORD = ""
# How SentencePiece writes the space before a word.
WORD_START = "▁"
# ARPA files hold base-10 logarithms, searches add natural ones.
LN_10 = math.log(10.0)
# Bounds of an ARPA file, which may be gzipped to a thousandth: characters of a line, lines that are no n-grams, and
# n-grams, of which each takes a quarter of a kilobyte here.
MAX_LINE_CHARACTERS = 2**16
MAX_OTHER_LINES = 100_000
MAX_NGRAMS = 50_000_000

Context = tuple[str, ...]


class LanguageModel(Protocol):
    """A language model over words; contexts are opaque and can be compared."""

    @property
    def start(self) -> Hashable:
        """The context of the first word."""
        ...

    @property
    def no_context(self) -> Hashable:
        """The context of a word after words that do not matter."""
        ...

    def knows(self, word: str) -> bool:
        """Whether a word is in the vocabulary."""
        ...

    def score(self, context: Any, word: str) -> float:
        """ln p(word | context)."""
        ...

    def advance(self, context: Any, word: str) -> Hashable:
        """The context after a word, no longer than what can still make a difference."""
        ...


class NgramModel:
    """An n-gram model; its scores are natural logarithms."""

    no_context: Context = ()

    def __init__(
        self,
        order: int,
        entries: dict[Context, float],
        backoffs: dict[Context, float],
    ):
        """`entries` hold ln p of each n-gram's last word, `backoffs` the weights of those n-grams that are contexts."""
        self.order = order
        self.entries = entries
        self.backoffs = backoffs
        self.followers: dict[Context, list[str]] = {}
        for ngram in entries:
            context = ngram[:-1]
            words = self.followers.setdefault(context, [])
            words.append(ngram[-1])

        self.unknown: str | None = None
        for word in UNKNOWN_WORDS:
            if self.unknown is None and (word,) in entries:
                self.unknown = word
        if self.unknown is not None:
            self.unknown_score = entries[(self.unknown,)]
        else:
            # The start follows no word: ARPA files give it -99.
            possible_words = set(self.followers.get((), []))
            possible_words.discard(SENTENCE_START)
            self.unknown_score = min(entries[(word,)] for word in possible_words)

    @property
    def start(self) -> Context:
        return self.shorten((SENTENCE_START,))

    def knows(self, word: str) -> bool:
        return (word,) in self.entries

    def score(self, context: Context, word: str) -> float:
        """ln p(word | context)."""
        if not self.knows(word):
            if self.unknown is None:
                # The score of the empty context, after backing off from every longer one.
                total_backoff = 0.0
                while context:
                    total_backoff += self.backoffs.get(context, 0.0)
                    context = context[1:]
                return self.unknown_score + total_backoff
            word = self.unknown

        # Ends at the latest with the empty context, in which every known word has an entry.
        total_backoff = 0.0
        score = self.entries.get((*context, word))
        while score is None:
            total_backoff += self.backoffs.get(context, 0.0)
            context = context[1:]
            score = self.entries.get((*context, word))
        return total_backoff + score

    def advance(self, context: Context, word: str) -> Context:
        """The context after a word, no longer than what can still make a difference."""
        if not self.knows(word) and self.unknown is not None:
            word = self.unknown
        return self.shorten((*context, word))

    def shorten(self, context: Context) -> Context:
        """The end of a context that scores the same: fewer contexts are fewer states in a search."""
        if self.order == 1:
            return ()
        max_words = self.order - 1
        context = context[-max_words:]
        while context:
            # A context with a weight of 0 (ln 1) that nothing follows is passed over by every score.
            if context in self.followers or self.backoffs.get(context):
                break
            context = context[1:]
        return context


def read_arpa(path: Path) -> NgramModel:
    """Read an ARPA file, gzipped when its name ends in .gz. ValueError when it is none, OSError as from `open`."""
    # Some tools write a byte order mark, which is no part of the text.
    encoding = "utf-8-sig"
    open_text = open
    if path.suffix == ".gz":
        open_text = gzip.open
    with open_text(path, "rt", encoding=encoding) as file:
        try:
            return _parse(_read_lines(file, path), path)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no ARPA file in UTF-8: {error}") from None
        except (EOFError, zlib.error) as error:
            raise ValueError(f"{path} is no whole gzip file: {error}") from None


def _read_lines(file: TextIO, path: Path) -> Iterator[str]:
    """The lines of a file; ValueError at one that is longer than any n-gram: a small archive may hold it."""
    while True:
        line = file.readline(MAX_LINE_CHARACTERS)
        if not line:
            return
        if len(line) == MAX_LINE_CHARACTERS:
            raise ValueError(f"{path} has a line of more than {MAX_LINE_CHARACTERS} characters, which is no n-gram")
        yield line


def _parse(lines: Iterable[str], path: Path) -> NgramModel:
    announced: dict[int, int] = {}
    entries: dict[Context, float] = {}
    backoffs: dict[Context, float] = {}
    order = 0
    num_read = 0
    ended = False
    max_lines = MAX_OTHER_LINES

    for number, line in enumerate(lines, start=1):
        if number > max_lines:
            raise ValueError(f"{path} has more than the lines that its header announces")
        text = line.strip("\r\n \t")
        heading = re.fullmatch(r"\\(\d{1,3})-grams:", text)
        if heading:
            _check_count(path, announced, order, num_read)
            order = int(heading[1])
            num_read = 0
        elif text == "\\end\\":
            _check_count(path, announced, order, num_read)
            ended = True
            break
        elif order == 0:
            # Before the first section: the header, perhaps after comments.
            count = re.fullmatch(r"ngram[ \t]+(\d{1,3})[ \t]*=[ \t]*(\d{1,15})", text)
            if count:
                announced[int(count[1])] = int(count[2])
                num_announced = sum(announced.values())
                if num_announced > MAX_NGRAMS:
                    raise ValueError(
                        f"{path} announces {num_announced} n-grams, and up to {MAX_NGRAMS} are read from an ARPA file; "
                        "make it a binary of KenLM"
                    )
                max_lines = num_announced + MAX_OTHER_LINES
        elif text:
            place = f"{path}, line {number}"
            _read_entry(text, order, entries, backoffs, place)
            num_read += 1

    # The start of a sentence follows no word.
    has_words = any(len(ngram) == 1 and ngram != (SENTENCE_START,) for ngram in entries)
    if not ended or not announced or not has_words:
        raise ValueError(f"{path} is no whole ARPA file: it lacks its counts, its 1-grams or its \\end\\")
    return NgramModel(max(announced), entries, backoffs)


def _read_entry(
    text: str,
    order: int,
    entries: dict[Context, float],
    backoffs: dict[Context, float],
    place: str,
) -> None:
    """Read `score word ... word [back-off]`."""
    # Only spaces and tabs divide: a token may be any other kind of space.
    fields = re.split(r"[ \t]+", text)
    num_fields = len(fields)
    has_backoff = num_fields == order + 2
    shown = text[:60]
    if num_fields != order + 1 and not has_backoff:
        raise ValueError(f"{place}: {shown!r} is no {order}-gram with its probability and perhaps a back-off")

    ngram = tuple(fields[1 : order + 1])
    try:
        entries[ngram] = float(fields[0]) * LN_10
        if has_backoff:
            backoffs[ngram] = float(fields[-1]) * LN_10
    except ValueError:
        raise ValueError(f"{place}: {shown!r} does not begin (and end) with a number") from None
    # Added to other scores, each of these would be the score of everything.
    if not math.isfinite(entries[ngram]) or not math.isfinite(backoffs.get(ngram, 0.0)):
        raise ValueError(f"{place}: {shown!r} has a probability or a back-off that is no finite number")


def _check_count(
    path: Path,
    announced: dict[int, int],
    order: int,
    num_read: int,
) -> None:
    """ValueError where the section that ends here is not as long as the header says; order 0 is before the first."""
    if order == 0:
        return
    if order not in announced:
        raise ValueError(f"{path} holds {order}-grams and has no line `ngram {order}=COUNT` in its header")
    num_announced = announced[order]
    if num_announced != num_read:
        raise ValueError(f"{path} announces {num_announced} {order}-grams and holds {num_read}: it was cut or changed")


class TokenLanguageModel:
    """A scorer whose words are the tokens; its state is the context."""

    def __init__(self, model: LanguageModel, pieces: Sequence[str]):
        """`pieces` is the text of every token id, as the model writes it."""
        self.model = model
        self.pieces = list(pieces)
        # A text is begun and ended by the search, not by a token in it: these two score as unknown words.
        self._known_V = np.array([model.knows(piece) for piece in pieces])
        self._known_V[[START, END]] = False
        # Of each context the tokens that follow it, with their scores.
        self._followers: dict[Context, list[tuple[int, float]]] = {}
        if not isinstance(model, NgramModel):
            return
        token_of_piece = {}
        for token, piece in enumerate(self.pieces):
            if token not in (START, END):
                token_of_piece[piece] = token
        for context, words in model.followers.items():
            followers = []
            for word in words:
                token = token_of_piece.get(word)
                if token is not None:
                    score = model.entries[(*context, word)]
                    followers.append((token, score))
            self._followers[context] = followers

    @property
    def start(self) -> Hashable:
        return self.model.start

    def scores(self, state: Any) -> np.ndarray:
        """The points of each token after the state [V]."""
        scores_V = np.zeros(len(self.pieces))
        if isinstance(self.model, NgramModel):
            # From the shortest context to the longest: what a longer one lacks backs off, what it has overwrites.
            for begin in reversed(range(len(state) + 1)):
                context = state[begin:]
                if context:
                    scores_V += self.model.backoffs.get(context, 0.0)
                for token, score in self._followers.get(context, ()):
                    scores_V[token] = score
        else:
            # KenLM tells no list of a context's followers.
            for token in self._known_V.nonzero()[0]:
                piece = self.pieces[token]
                scores_V[token] = self.model.score(state, piece)
        scores_V[~self._known_V] = self.model.score(state, NO_WORD)
        return scores_V

    def advance(self, state: Any, token: int) -> Hashable:
        """The state after a token."""
        if token in (START, END):
            return self.model.no_context
        return self.model.advance(state, self.pieces[token])

    def end(self, state: Any) -> float:
        """The points of a text that ends here."""
        return self.model.score(state, SENTENCE_END)


class WordLanguageModel:
    """A scorer that counts a word when the next one begins, or the text ends; its state is (context, word so far)."""

    def __init__(self, model: LanguageModel, pieces: Sequence[str]):
        self.model = model
        self.pieces = list(pieces)
        self._begins_V = np.array([piece.startswith(WORD_START) for piece in pieces])

    @property
    def start(self) -> tuple[Hashable, str]:
        return self.model.start, ""

    def scores(self, state: tuple[Any, str]) -> np.ndarray:
        """The points of each token after the state [V]."""
        context, word = state
        if not word:
            return np.zeros(len(self.pieces))
        # Only a piece that begins the next word completes this one.
        word_score = self.model.score(context, word)
        return self._begins_V * word_score

    def advance(self, state: tuple[Any, str], token: int) -> tuple[Hashable, str]:
        """The state after a token."""
        if token in (START, END):
            return state
        context, word = state
        piece = self.pieces[token]
        if not self._begins_V[token]:
            return context, word + piece
        if word:
            context = self.model.advance(context, word)
        return context, piece.lstrip(WORD_START)

    def end(self, state: tuple[Any, str]) -> float:
        """The points of a text that ends here: of its last word, and of the end."""
        context, word = state
        if not word:
            return self.model.score(context, SENTENCE_END)
        word_score = self.model.score(context, word)
        next_context = self.model.advance(context, word)
        return word_score + self.model.score(next_context, SENTENCE_END)
