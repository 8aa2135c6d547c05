"""`chorus language-model`: an n-gram model of a run's training transcripts, or of any text."""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data.errors import DataError
from data.shards.joined_split import read_split
from data.text.language_model import write_language_model, write_tokenizer_hash
from data.text.tokenizer import UNKNOWN, Tokenizer
from launcher.errors import ConfigError
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder


def language_model(options: argparse.Namespace) -> int:
    source = Path(options.source).expanduser()
    out = Path(options.out).expanduser()
    if options.order < 1:
        raise ConfigError(f"--order is {options.order}: an n-gram has 1 word or more.")

    run = RunFolder(source)
    if run.recipe_file.is_file():
        recipe = load_recipe(run.recipe_file, of_run=True)
        max_damaged = recipe.cluster.storage.max_quarantined
        texts = read_split(recipe.split_folders(run, "train"), max_damaged=max_damaged).transcripts()
    elif source.is_file():
        texts = _lines(source)
    else:
        raise ConfigError(f"{source} is neither a run folder nor a text file. Name one of them.")

    tokenizer = None
    if options.unit == "token":
        folder = run.tokenizer
        if options.tokenizer:
            folder = Path(options.tokenizer).expanduser()
        if not folder.is_dir():
            raise ConfigError(
                f"There is no tokenizer at {folder}. Name the tokenizer folder of a run or of a finished model with "
                "--tokenizer, or make a model of words with --unit word."
            )
        tokenizer = Tokenizer.load(folder)
    skipped: Counter[str] = Counter()
    sentences = _sentences(texts, tokenizer, skipped)
    counts = write_language_model(sentences, options.order, out)
    write_tokenizer_hash(out, tokenizer)

    if options.json:
        row = {"language_model": str(out), "unit": options.unit, "ngrams": counts, "skipped": dict(skipped)}
        print(json.dumps(row, ensure_ascii=False))
    else:
        sizes = [f"{count:,} {size}-grams" for size, count in counts.items()]
        print(f"{out}: {', '.join(sizes)}")
        if skipped["unknown"]:
            print(f"{skipped['unknown']} texts have characters that the tokenizer does not know, and are left out.")
    return 0


def _lines(path: Path) -> Iterator[str]:
    try:
        # A byte order mark, as editors on Windows write it, is no character of the first word.
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"The text in {path} is not UTF-8: {error}. Convert it first.") from None


def _sentences(texts: Iterable[str], tokenizer: Tokenizer | None, skipped: Counter[str]) -> Iterator[Sequence[str]]:
    """The words of each text, or the tokenizer's pieces; texts without any are skipped, and so are those with an
    unknown one, which are counted."""
    pieces: list[str] = []
    if tokenizer is not None:
        pieces = tokenizer.pieces
    for text in texts:
        if tokenizer is None:
            sentence = text.split()
        else:
            tokens = tokenizer.encode(text.strip())
            # No model writes what is unknown, and n-grams around it would be of other sentences.
            if UNKNOWN in tokens:
                skipped["unknown"] += 1
                continue
            sentence = [pieces[token] for token in tokens]
        if sentence:
            yield sentence
