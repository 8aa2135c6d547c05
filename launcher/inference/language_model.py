"""Language models of transcripts: of any texts, and of those that a run was trained on."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from data.shards.joined_split import read_split
from data.text.language_model import write_language_model, write_tokenizer_hash
from data.text.tokenizer import UNKNOWN, Tokenizer
from launcher.recipe import Recipe
from launcher.recipe.search import GreedyConfig, SearchConfig, TransducerSearchConfig
from launcher.run_folder import RunFolder

logger = logging.getLogger(__name__)


def estimate_language_model(
    texts: Iterable[str], tokenizer: Tokenizer | None, order: int, path: Path
) -> tuple[dict[int, int], int]:
    """Write an n-gram model of texts: of their words, or of a tokenizer's pieces. Returns the number of n-grams by
    length, and how many texts were left out because the tokenizer lacks a character of theirs.

    DataError when no text is left, or when a word cannot stand in an ARPA file.
    """
    skipped: Counter[str] = Counter()
    counts = write_language_model(_sentences(texts, tokenizer, skipped), order, path)
    write_tokenizer_hash(path, tokenizer)
    return counts, skipped["unknown"]


def with_language_model(
    search: SearchConfig, recipe: Recipe, run: RunFolder, on_progress: Callable[[], None] = lambda: None
) -> SearchConfig:
    """Return the search with the file of its language model, which is made of the run's training transcripts where the
    search says of which order. It is made once for the same texts and tokens; `on_progress` is called for each text."""
    if isinstance(search, GreedyConfig | TransducerSearchConfig):
        return search
    config = search.language_model
    if config is None or config.order is None:
        return search
    split = read_split(recipe.split_folders(run, "train"), max_damaged=recipe.cluster.storage.max_quarantined)
    tokenizer = None
    tokens = "words"
    if config.unit == "token":
        tokenizer = Tokenizer.load(run.tokenizer)
        tokens = tokenizer.sha256
    made_of = sha256(f"{split.fingerprint} {tokens} {config.order}".encode()).hexdigest()
    path = run.language_model_file(f"{config.unit}-{config.order}-{made_of[:12]}")
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        texts = _heard(split.transcripts(), on_progress)
        _, num_unknown = estimate_language_model(texts, tokenizer, config.order, path)
        logger.info("%s is made of the training transcripts; %d have unknown characters", path, num_unknown)
    return search.model_copy(update={"language_model": config.model_copy(update={"path": path})})


def _heard(texts: Iterable[str], on_progress: Callable[[], None]) -> Iterator[str]:
    for text in texts:
        on_progress()
        yield text


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
