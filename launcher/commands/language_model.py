"""`chorus language-model`: an n-gram model of a run's training transcripts, or of any text."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from data.errors import DataError
from data.shards.joined_split import read_split
from data.text.tokenizer import Tokenizer
from launcher.errors import ConfigError
from launcher.inference.language_model import estimate_language_model
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
    counts, num_unknown = estimate_language_model(texts, tokenizer, options.order, out)
    if options.json:
        skipped = {"unknown": num_unknown} if num_unknown else {}
        row = {"language_model": str(out), "unit": options.unit, "ngrams": counts, "skipped": skipped}
        print(json.dumps(row, ensure_ascii=False))
    else:
        sizes = [f"{count:,} {size}-grams" for size, count in counts.items()]
        print(f"{out}: {', '.join(sizes)}")
        if num_unknown:
            print(f"{num_unknown} texts have characters that the tokenizer does not know, and are left out.")
    return 0


def _lines(path: Path) -> Iterator[str]:
    try:
        # A byte order mark, as editors on Windows write it, is no character of the first word.
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"The text in {path} is not UTF-8: {error}. Convert it first.") from None
