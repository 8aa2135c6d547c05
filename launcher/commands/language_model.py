"""`chorus language-model`: an n-gram model of a run's training transcripts, or of any text."""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data.errors import DataError
from data.language_model import write_language_model
from data.shards import read_index
from data.tokenizer import Tokenizer
from launcher.errors import ConfigError
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder


def language_model(options: argparse.Namespace) -> int:
    source = Path(options.source).expanduser()
    out = Path(options.out).expanduser()
    if options.order < 1:
        raise ConfigError(f"--order is {options.order}: an n-gram has 1 word or more.")

    texts = _texts(source)
    if options.unit == "word":
        sentences = _words(texts)
    else:
        sentences = _tokens(texts, _tokenizer(source, options))
    counts = write_language_model(sentences, options.order, out)

    if options.json:
        print(json.dumps({"language_model": str(out), "unit": options.unit, "ngrams": counts}, ensure_ascii=False))
    else:
        print(f"{out}: {', '.join(f'{count:,} {size}-grams' for size, count in counts.items())}")
    return 0


def _texts(source: Path) -> Iterable[str]:
    """The training transcripts of a run, or the lines of a text file."""
    run = RunFolder(source)
    if run.recipe_file.is_file():
        return read_index(load_recipe(run.recipe_file, of_run=True).split_folder(run, "train")).transcripts()
    if not source.is_file():
        raise ConfigError(f"{source} is neither a run folder nor a text file. Name one of them.")
    return _lines(source)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"The text in {path} is not UTF-8: {error}. Convert it first.") from None


def _words(texts: Iterable[str]) -> Iterator[Sequence[str]]:
    for text in texts:
        words = text.split()
        if words:
            yield words


def _tokens(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[Sequence[str]]:
    pieces = tokenizer.pieces
    for text in texts:
        sentence = text.strip()
        if sentence:
            yield [pieces[token] for token in tokenizer.encode(sentence)]


def _tokenizer(source: Path, options: argparse.Namespace) -> Tokenizer:
    folder = Path(options.tokenizer).expanduser() if options.tokenizer else RunFolder(source).tokenizer
    if not folder.is_dir():
        raise ConfigError(
            f"There is no tokenizer at {folder}. Name the tokenizer folder of a run or of a finished model with "
            "--tokenizer, or make a model of words with --unit word."
        )
    return Tokenizer.load(folder)
