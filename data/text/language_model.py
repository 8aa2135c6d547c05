"""Estimates an n-gram language model from texts and writes it as an ARPA file.

Witten-Bell smoothing (Witten and Bell, 1991), interpolated: p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h)), with
T(h) the different words seen after h and h' the context without its first word; below the unigrams all words and
`<unk>` are equally probable. It needs no held-out text and works with little text. The same texts give the same file,
byte for byte. Refused, with a `DataError`: texts without a word, and words that an ARPA file cannot hold.
"""

import gzip
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.errors import DataError
from data.files import read_bounded, remove_path, replacing
from data.text.tokenizer import Tokenizer

START = "<s>"
END = "</s>"
UNKNOWN = "<unk>"
# What ARPA files write for the start, which is never predicted.
NEVER = -99.0

Ngram = tuple[str, ...]


def count_ngrams(texts: Iterable[Sequence[str]], order: int) -> list[Counter[Ngram]]:
    """How often each n-gram occurs in the texts, of order 1 to `order`; the starts of texts are counted as contexts."""
    counts: list[Counter[Ngram]] = [Counter() for _ in range(order)]
    for words in texts:
        padded = (START, *words, END)
        # From the second word on: the start is a context and is never predicted.
        for stop in range(2, len(padded) + 1):
            longest = min(order, stop)
            for size in range(1, longest + 1):
                ngram = padded[stop - size : stop]
                counts[size - 1][ngram] += 1
    return counts


def estimate(counts: list[Counter[Ngram]]) -> tuple[dict[Ngram, float], dict[Ngram, float]]:
    """Probabilities of all n-grams seen and back-off weights of their contexts, from counts by order."""
    # c(h) and T(h) of the module's formula.
    totals: Counter[Ngram] = Counter()
    num_distinct: Counter[Ngram] = Counter()
    for ngrams in counts:
        for ngram, count in ngrams.items():
            context = ngram[:-1]
            totals[context] += count
            num_distinct[context] += 1

    backoffs: dict[Ngram, float] = {}
    for context, total in totals.items():
        backoffs[context] = num_distinct[context] / (total + num_distinct[context])

    # The words seen, and the unknown one.
    uniform = 1 / (len(counts[0]) + 1)
    probabilities: dict[Ngram, float] = {}
    probabilities[(UNKNOWN,)] = backoffs[()] * uniform
    # Order by order, since each probability builds on that of its context without the first word.
    for ngrams in counts:
        for ngram, count in ngrams.items():
            context = ngram[:-1]
            shorter = uniform
            if context:
                shorter = probabilities[ngram[1:]]
            numerator = count + num_distinct[context] * shorter
            denominator = totals[context] + num_distinct[context]
            probabilities[ngram] = numerator / denominator
    return probabilities, backoffs


def write_language_model(texts: Iterable[Sequence[str]], order: int, path: Path) -> dict[int, int]:
    """Estimate a model from texts, each a sequence of words, and write it to `path`, gzipped if that ends in .gz.

    Returns the number of n-grams of each order.
    """
    counts = count_ngrams(texts, order)
    if set(counts[0]) <= {(END,)}:
        raise DataError(f"The texts for {path} hold no word, so there is no language model to estimate from them.")
    for (word,) in counts[0]:
        # Of any kind: readers differ in where they end a word or a line.
        has_space = not word or any(map(str.isspace, word))
        if has_space or word in (START, UNKNOWN):
            raise DataError(f"The word {word!r} cannot stand in an ARPA file: take it out of the texts for {path}.")
    probabilities, backoffs = estimate(counts)

    # The start has no probability of its own, but an ARPA file lists it for its back-off weight.
    ngrams_by_order: dict[int, list[Ngram]] = {}
    for size in range(1, order + 1):
        ngrams_by_order[size] = []
    ngrams_by_order[1].append((START,))
    for ngram in probabilities:
        ngrams_by_order[len(ngram)].append(ngram)

    num_ngrams = {size: len(ngrams) for size, ngrams in ngrams_by_order.items()}
    lines = ["\\data\\"]
    for size, number in num_ngrams.items():
        lines.append(f"ngram {size}={number}")
    for size, ngrams in ngrams_by_order.items():
        lines.append("")
        lines.append(f"\\{size}-grams:")
        for ngram in sorted(ngrams):
            score = NEVER
            if ngram != (START,):
                score = math.log10(probabilities[ngram])
            line = f"{score:.7f}\t{' '.join(ngram)}"
            if ngram in backoffs and size < order:
                line += f"\t{math.log10(backoffs[ngram]):.7f}"
            lines.append(line)
    lines += ["", "\\end\\", ""]

    content = "\n".join(lines).encode()
    if path.suffix == ".gz":
        # By default the header holds the present time, and the same texts would give other bytes.
        content = gzip.compress(content, mtime=0)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return num_ngrams


def write_tokenizer_hash(language_model: Path, tokenizer: Tokenizer | None) -> None:
    """Record beside a language model of tokens whose tokens they are: an ARPA file has no room for it that all readers
    pass over. Beside one of words there is no record."""
    file = _tokenizer_file(language_model)
    if tokenizer is None:
        remove_path(file)
        return
    with replacing(file) as temporary:
        temporary.write_text(f"{tokenizer.sha256}\n", encoding="ascii")


def read_tokenizer_hash(language_model: Path) -> str | None:
    """The SHA-256 of the tokenizer whose tokens a language model has; None where nothing is recorded."""
    try:
        return read_bounded(_tokenizer_file(language_model), 100).decode("ascii").strip()
    # Models from elsewhere have none.
    except (OSError, ValueError):
        return None


def _tokenizer_file(language_model: Path) -> Path:
    return language_model.with_name(f"{language_model.name}.tokenizer")
