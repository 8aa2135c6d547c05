"""n-gram language models: the ARPA format (base-10 logarithms, back-off), and scorers over tokens and over words.

p(w | h) is the entry of h w where there is one, else backoff(h) p(w | h without its first word). A word that the model
lacks counts as its `<unk>`, or, without one, as its least probable word. The files of KenLM, SRILM and `chorus
language-model` are read, gzipped or not; a file that is none is refused with a ValueError naming the line.
"""

import gzip
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from model.recognizer import END, START

SENTENCE_START, SENTENCE_END, UNKNOWN_WORDS = "<s>", "</s>", ("<unk>", "<UNK>")
WORD_START = "▁"  # how SentencePiece writes the space before a word
LN_10 = math.log(10.0)

Context = tuple[str, ...]


class NgramModel:
    """An n-gram model; its numbers are natural logarithms."""

    def __init__(self, order: int, entries: dict[Context, float], backoffs: dict[Context, float]):
        """`entries` hold ln p of each n-gram's last word, `backoffs` the weights of those n-grams that are contexts."""
        self.order, self.entries, self.backoffs = order, entries, backoffs
        self.unknown = next((word for word in UNKNOWN_WORDS if (word,) in entries), None)
        self.followers: dict[Context, list[str]] = {}
        for ngram in entries:
            self.followers.setdefault(ngram[:-1], []).append(ngram[-1])
        words = [score for ngram, score in entries.items() if len(ngram) == 1 and ngram != (SENTENCE_START,)]
        self.unknown_score = entries[(self.unknown,)] if self.unknown else min(words)

    @property
    def start(self) -> Context:
        return self.shorten((SENTENCE_START,))

    def score(self, context: Context, word: str) -> float:
        """ln p(word | context)."""
        if (word,) not in self.entries:
            if self.unknown is None:
                return self.unknown_score + sum(self.backoffs.get(context[i:], 0.0) for i in range(len(context)))
            word = self.unknown
        total = 0.0
        while (found := self.entries.get((*context, word))) is None:
            total += self.backoffs.get(context, 0.0)
            context = context[1:]
        return total + found

    def advance(self, context: Context, word: str) -> Context:
        """The context after a word, no longer than what can still make a difference."""
        if (word,) not in self.entries:
            word = self.unknown or word
        return self.shorten((*context, word))

    def shorten(self, context: Context) -> Context:
        context = context[-(self.order - 1) :] if self.order > 1 else ()
        while context and context not in self.followers and not self.backoffs.get(context):
            context = context[1:]
        return context


def read_arpa(path: Path) -> NgramModel:
    """Read an ARPA file, gzipped when its name ends in .gz. ValueError when it is none, OSError as from `open`."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        try:
            return _parse(file, path)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no ARPA file in UTF-8: {error}") from None


def _parse(lines: Iterator[str], path: Path) -> NgramModel:
    counts: dict[int, int] = {}
    entries: dict[Context, float] = {}
    backoffs: dict[Context, float] = {}
    order, seen, ended = 0, 0, False
    for number, line in enumerate(lines, start=1):
        text = line.strip("\r\n \t")
        if heading := re.fullmatch(r"\\(\d+)-grams:", text):
            _check_count(path, counts, order, seen)
            order, seen = int(heading[1]), 0
        elif text == "\\end\\":
            _check_count(path, counts, order, seen)
            ended = True
            break
        elif order == 0:
            if count := re.fullmatch(r"ngram (\d+)\s*=\s*(\d+)", text):
                counts[int(count[1])] = int(count[2])
        elif text:
            _read_entry(text, order, entries, backoffs, f"{path}, line {number}")
            seen += 1
    if not ended or not counts or (len(entries) and not any(len(ngram) == 1 for ngram in entries)):
        raise ValueError(f"{path} is no whole ARPA file: it lacks its counts, its 1-grams or its \\end\\")
    return NgramModel(max(counts), entries, backoffs)


def _read_entry(
    text: str, order: int, entries: dict[Context, float], backoffs: dict[Context, float], place: str
) -> None:
    # Only spaces and tabs divide: a token may be any other kind of space.
    fields = re.split(r"[ \t]+", text)
    if len(fields) not in (order + 1, order + 2):
        raise ValueError(f"{place}: {text[:60]!r} is no {order}-gram with its probability and perhaps a back-off")
    ngram = tuple(fields[1 : order + 1])
    try:
        entries[ngram] = float(fields[0]) * LN_10
        if len(fields) == order + 2:
            backoffs[ngram] = float(fields[-1]) * LN_10
    except ValueError:
        raise ValueError(f"{place}: {text[:60]!r} does not begin (and end) with a number") from None


def _check_count(path: Path, counts: dict[int, int], order: int, seen: int) -> None:
    if order and counts.get(order) != seen:
        raise ValueError(f"{path} announces {counts.get(order)} {order}-grams and holds {seen}: it was cut or changed")


class TokenLanguageModel:
    """A scorer whose words are the tokens; its state is the context."""

    def __init__(self, model: NgramModel, pieces: Sequence[str]):
        """`pieces` is the text of every token id, as the model writes it."""
        self.model, self.pieces = model, list(pieces)
        ids = {piece: token for token, piece in enumerate(pieces) if token not in (START, END)}
        self._known = np.array([(piece,) in model.entries and piece in ids for piece in pieces])
        self._ids_of = {
            context: [(ids[word], model.entries[(*context, word)]) for word in words if word in ids]
            for context, words in model.followers.items()
        }

    @property
    def start(self) -> Context:
        return self.model.start

    def scores(self, state: Context) -> np.ndarray:
        unknown = self.model.score(state, self.model.unknown or "")
        scores = np.zeros(len(self.pieces))
        for begin in range(len(state), -1, -1):
            context = state[begin:]
            scores += self.model.backoffs.get(context, 0.0) if context else 0.0
            for token, score in self._ids_of.get(context, ()):
                scores[token] = score
        scores[~self._known] = unknown
        return scores

    def advance(self, state: Context, token: int) -> Context:
        # A text is begun and ended by the search, not by a token in it.
        return () if token in (START, END) else self.model.advance(state, self.pieces[token])

    def end(self, state: Context) -> float:
        return self.model.score(state, SENTENCE_END)


class WordLanguageModel:
    """A scorer that counts a word when the next one begins, or the text ends; its state is (context, word so far)."""

    def __init__(self, model: NgramModel, pieces: Sequence[str]):
        self.model, self.pieces = model, list(pieces)
        self._begins_V = np.array([piece.startswith(WORD_START) for piece in pieces])

    @property
    def start(self) -> tuple[Context, str]:
        return self.model.start, ""

    def scores(self, state: tuple[Context, str]) -> np.ndarray:
        context, word = state
        return self._begins_V * self.model.score(context, word) if word else np.zeros(len(self.pieces))

    def advance(self, state: tuple[Context, str], token: int) -> tuple[Context, str]:
        context, word = state
        if token in (START, END):
            return state
        if not self._begins_V[token]:
            return context, word + self.pieces[token]
        return (self.model.advance(context, word) if word else context), self.pieces[token].lstrip(WORD_START)

    def end(self, state: tuple[Context, str]) -> float:
        context, word = state
        if not word:
            return self.model.score(context, SENTENCE_END)
        return self.model.score(context, word) + self.model.score(self.model.advance(context, word), SENTENCE_END)
