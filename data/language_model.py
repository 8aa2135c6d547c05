"""Estimates an n-gram language model from texts and writes it as an ARPA file.

Witten-Bell smoothing (Witten and Bell, 1991), interpolated: p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h)), with
T(h) the different words seen after h and h' the context without its first word; below the unigrams all words and
`<unk>` are equally probable. It needs no held-out text and holds up on little of it. The same texts give the same file,
byte for byte. Refused, with a `DataError`: texts without a word, and words that an ARPA file cannot hold.
"""

import gzip
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.errors import DataError

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
# What ARPA files write for the start, which is never predicted.
NEVER = -99.0

Ngram = tuple[str, ...]


def count_ngrams(texts: Iterable[Sequence[str]], order: int) -> list[Counter[Ngram]]:
    """How often each n-gram stands in the texts, of order 1 to `order`; the starts of texts are counted as contexts."""
    counts: list[Counter[Ngram]] = [Counter() for _ in range(order)]
    for words in texts:
        padded = (START, *words, END)
        for end in range(2, len(padded) + 1):
            for size in range(1, min(order, end) + 1):
                counts[size - 1][padded[end - size : end]] += 1
    return counts


def estimate(counts: list[Counter[Ngram]]) -> tuple[dict[Ngram, float], dict[Ngram, float]]:
    """Probabilities of all n-grams seen and back-off weights of their contexts."""
    totals: Counter[Ngram] = Counter()
    kinds: Counter[Ngram] = Counter()
    for of_order in counts:
        for ngram, count in of_order.items():
            totals[ngram[:-1]] += count
            kinds[ngram[:-1]] += 1
    backoffs = {context: kinds[context] / (totals[context] + kinds[context]) for context in totals}
    base = 1 / (len(counts[0]) + 1)
    probabilities: dict[Ngram, float] = {(UNKNOWN,): backoffs[()] * base}
    for of_order in counts:
        for ngram, count in of_order.items():
            context = ngram[:-1]
            shorter = probabilities[ngram[1:]] if context else base
            probabilities[ngram] = (count + kinds[context] * shorter) / (totals[context] + kinds[context])
    return probabilities, backoffs


def write_language_model(texts: Iterable[Sequence[str]], order: int, path: Path) -> dict[int, int]:
    """Estimate a model from texts, each a sequence of words, and write it to `path`, gzipped if that ends in .gz.

    Returns the number of n-grams of each order.
    """
    counts = count_ngrams(texts, order)
    if set(counts[0]) <= {(END,)}:
        raise DataError(f"The texts for {path} hold no word, so there is no language model to estimate from them.")
    for (word,) in counts[0]:
        if any(space in word for space in " \t\r\n") or word in (START, UNKNOWN):
            raise DataError(f"The word {word!r} cannot stand in an ARPA file: take it out of the texts for {path}.")
    probabilities, backoffs = estimate(counts)
    text, numbers = _arpa(probabilities, backoffs, order)
    content = text.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    temporary.replace(path)
    return numbers


def _arpa(probabilities: dict[Ngram, float], backoffs: dict[Ngram, float], order: int) -> tuple[str, dict[int, int]]:
    of_order: list[list[Ngram]] = [[] for _ in range(order)]
    of_order[0].append((START,))
    for ngram in probabilities:
        of_order[len(ngram) - 1].append(ngram)
    numbers = {size: len(ngrams) for size, ngrams in enumerate(of_order, start=1)}
    lines = ["\\data\\", *(f"ngram {size}={number}" for size, number in numbers.items())]
    for size, ngrams in enumerate(of_order, start=1):
        lines += ["", f"\\{size}-grams:"]
        for ngram in sorted(ngrams):
            score = NEVER if ngram == (START,) else math.log10(probabilities[ngram])
            backoff = f"\t{math.log10(backoffs[ngram]):.7f}" if ngram in backoffs and size < order else ""
            lines.append(f"{score:.7f}\t{' '.join(ngram)}{backoff}")
    return "\n".join([*lines, "", "\\end\\", ""]), numbers
