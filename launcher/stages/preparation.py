"""The stages that run in the launcher itself: shards, tokenizer and feature statistics.

A kill at any moment leaves nothing half-made under a final name; what was finished before it is kept.
"""

import json
import os
from typing import TYPE_CHECKING

from data.files import flush_folder, remove_path
from launcher.monitoring.progress import Display
from launcher.processes.worker_command import num_cores
from launcher.recipe import Recipe, ShardsCorpus
from launcher.run_folder import RunFolder, write_json
from launcher.stages.start_checks import check_splits, no_validation

if TYPE_CHECKING:
    from data.shard_index import ShardIndex


def prepare_corpus(recipe: Recipe, run: RunFolder, display: Display) -> None:
    """Write the corpus as shards into the run folder, or see that those it names are there (DataError)."""
    from data.corpora import prepare
    from data.shard_index import read_index

    if isinstance(recipe.corpus, ShardsCorpus):
        index = read_index(recipe.split_folder(run, "train"))
        display.say(f"prepare: {len(index)} training utterances are at {recipe.corpus.shards}")
        _check_corpus(recipe, run, display)
        return
    display.begin("prepare", 1)
    report = prepare(
        recipe.corpus,
        run.corpus,
        seed=recipe.seed,
        sample_rate_hz=recipe.features.sample_rate_hz,
        workers=num_cores(),
        replace=True,
        on_progress=lambda split, done, total: display.count(f"utterances of {split}", done, total),
    )
    display.end()
    for name, split in report.splits.items():
        display.say(f"prepare: {name} has {split.utterances} utterances, {split.seconds / 3600:.2f} h")
    display.say(f"prepare: {report.account()}")
    if report.rejected:
        display.say(f"prepare: {run.corpus / 'rejected.jsonl'} says why of each rejected row")
    _check_corpus(recipe, run, display)


def _check_corpus(recipe: Recipe, run: RunFolder, display: Display) -> None:
    check_splits(recipe, run)
    sentence = no_validation(recipe, run)
    if sentence:
        display.say(f"prepare: {sentence}")


def measure_features(recipe: Recipe, run: RunFolder, display: Display) -> None:
    """Measure the features' mean and deviation for the stages that look at no transcripts."""
    from data.shard_index import read_index

    index = read_index(recipe.split_folder(run, "train"))
    write_json(run.statistics_file, _feature_statistics(recipe, index))
    display.say("features: statistics measured")


def _feature_statistics(recipe: Recipe, index: "ShardIndex") -> dict[str, list[float]]:
    from data.features import measure_statistics
    from data.reader import ShardReader

    mean_F, std_F = measure_statistics(ShardReader(index), recipe.features, recipe.seed)
    return {"mean": mean_F.tolist(), "std": std_F.tolist()}


def make_tokenizer(recipe: Recipe, run: RunFolder, display: Display) -> None:
    """Train the tokenizer on the training texts, count tokens, and measure the features' mean and deviation."""
    from data.shard_index import read_index
    from data.token_counts import token_counts
    from data.tokenizer import train_tokenizer

    index = read_index(recipe.split_folder(run, "train"))
    partial = run.path / ".tokenizer.partial"
    remove_path(partial)
    partial.mkdir()
    transcripts = (text for text in index.transcripts() if text)
    tokenizer = train_tokenizer(transcripts, recipe.tokenizer, partial)
    token_counts(index, tokenizer, partial / run.token_counts_file("train").name)
    if recipe.has_split(run, "dev"):
        dev = read_index(recipe.split_folder(run, "dev"))
        token_counts(dev, tokenizer, partial / run.token_counts_file("dev").name)
    statistics = _feature_statistics(recipe, index)
    (partial / run.features_file.name).write_text(json.dumps(statistics) + "\n", encoding="utf-8")

    # A folder that is not empty cannot be replaced by a rename: the old one steps aside under a hidden name, and a kill
    # in between leaves none, never a mixture.
    old = run.tokenizer.with_name(f".{run.tokenizer.name}.old")
    remove_path(old)
    if os.path.lexists(run.tokenizer):
        run.tokenizer.rename(old)
    partial.rename(run.tokenizer)
    flush_folder(run.path)
    remove_path(old)
    display.say(f"tokenizer: {tokenizer.vocabulary_size} {recipe.tokenizer.kind} pieces, feature statistics measured")
