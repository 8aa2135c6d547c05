"""The stages that run in the launcher itself: shards, tokenizer and feature statistics.

A kill at any moment leaves nothing half-made under a final name; what was finished before it is kept.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from data.files import flush_folder, remove_path
from launcher.errors import ConfigError
from launcher.monitoring.progress import Display
from launcher.processes.worker_command import num_cores
from launcher.recipe import MixtureCorpus, Recipe, ShardsCorpus
from launcher.run_folder import RunFolder, write_json, write_lines
from launcher.stages.start_checks import check_splits, no_validation

# Of a script that the tokenizer does not know there may be thousands.
MAX_SHOWN_CHARACTERS = 40

if TYPE_CHECKING:
    from data.sampling.sampler import AnyIntegers
    from data.shards.joined_split import SplitIndex


def prepare_corpus(recipe: Recipe, run: RunFolder, display: Display) -> None:
    """Write the corpus as shards into the run folder, or see that those it names are there (DataError)."""
    from data.corpora import prepare
    from data.shards.index import read_index

    for label, corpus in recipe.corpora().items():
        # A corpus without a mixture has no label.
        heading = "prepare"
        if label:
            heading = f"prepare {label}"
        if isinstance(corpus, ShardsCorpus):
            folder = recipe.split_folders(run, "train")[label]
            index = read_index(folder, max_damaged=recipe.cluster.storage.max_quarantined)
            display.say(f"{heading}: {len(index)} training utterances are at {corpus.shards}")
            continue
        # Runs of a sweep read the shards of one of them, which only that one writes.
        if (run.corpus.resolve().parent / run.state_file.name).is_file() and run.corpus.is_symlink():
            raise ConfigError(
                f"The shards of {run.path} are those of {run.corpus.resolve().parent}, which other runs read "
                "too, and they would be written anew: the recordings or the settings of the corpus changed. Put them "
                "back, or start anew with another --run-dir."
            )
        display.begin(heading, 1)
        report = prepare(
            corpus,
            run.corpus / label,
            seed=recipe.seed,
            sample_rate_hz=recipe.features.sample_rate_hz,
            workers=num_cores(),
            replace=True,
            on_progress=lambda split, done, total: display.count(f"utterances of {split}", done, total),
        )
        display.end()
        for name, split in report.splits.items():
            display.say(f"{heading}: {name} has {split.utterances} utterances, {split.seconds / 3600:.2f} h")
        display.say(f"{heading}: {report.account()}")
        if report.rejected:
            display.say(f"{heading}: {run.corpus / label / 'rejected.jsonl'} says why of each rejected row")
    _check_corpus(recipe, run, display)


def _check_corpus(recipe: Recipe, run: RunFolder, display: Display) -> None:
    check_splits(recipe, run)
    sentence = no_validation(recipe, run)
    if sentence:
        display.say(f"prepare: {sentence}")


def measure_features(recipe: Recipe, run: RunFolder, display: Display) -> None:
    """Measure the features' mean and deviation for the stages that look at no transcripts."""
    from data.shards.joined_split import read_split

    max_damaged = recipe.cluster.storage.max_quarantined
    index = read_split(recipe.initial_folders(run, "train"), max_damaged=max_damaged)
    write_json(run.statistics_file, _feature_statistics(recipe, index))
    display.say("features: statistics measured")


def _feature_statistics(recipe: Recipe, index: "SplitIndex") -> dict[str, list[float]]:
    from data.features import measure_statistics
    from data.shards.joined_split import open_reader

    mean_F, std_F = measure_statistics(open_reader(index, recipe.cluster.storage), recipe.features, recipe.seed)
    return {"mean": mean_F.tolist(), "std": std_F.tolist()}


def make_tokenizer(recipe: Recipe, run: RunFolder, display: Display) -> None:
    """Train the tokenizer on the training texts, count tokens, and measure the features' mean and deviation.

    A mixture's corpora that join later take no part in what is trained and measured: their vocabulary and their levels
    were not there when the run began.
    """
    from data.sampling.token_counts import split_token_counts
    from data.shards.joined_split import read_split
    from data.text.tokenizer import train_tokenizer

    partial = run.path / ".tokenizer.partial"
    remove_path(partial)
    partial.mkdir()
    max_damaged = recipe.cluster.storage.max_quarantined
    index = read_split(recipe.initial_folders(run, "train"), max_damaged=max_damaged)
    tokenizer = train_tokenizer(training_texts(recipe, run, index), recipe.tokenizer, partial)
    for split in ("train", "dev"):
        if recipe.has_split(run, split):
            split_index = read_split(recipe.present_folders(run, split), max_damaged=max_damaged)
            _, min_frames = split_token_counts(
                split_index,
                tokenizer,
                lambda label, split=split: partial / run.token_counts_file(split, label).name,
            )
            if split == "train":
                _report_infeasible(recipe, split_index, min_frames, partial / run.infeasible_file.name, display)
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
    display.say(f"tokenizer: {tokenizer.vocabulary_size} {tokenizer.kind} pieces, feature statistics measured")


def count_joining_tokens(recipe: Recipe, run: RunFolder, display: Display) -> None:
    """Count, once, the tokens of the corpora that join later, and say what of their texts the tokenizer does not know:
    it was trained without them."""
    from data.sampling.token_counts import stored_token_counts, token_counts
    from data.shards.index import read_index
    from data.text.tokenizer import Tokenizer

    if not isinstance(recipe.corpus, MixtureCorpus):
        return
    folders = recipe.present_folders(run, "train")
    for entry in recipe.corpus.mix:
        if entry.from_step is None or entry.label not in folders:
            continue
        file = run.token_counts_file("train", entry.label)
        index = read_index(folders[entry.label], max_damaged=recipe.cluster.storage.max_quarantined)
        tokenizer = Tokenizer.load(run.tokenizer)
        if stored_token_counts(index, tokenizer, lambda label, file=file: file) is not None:
            continue
        token_counts(index, tokenizer, file)
        unknown: dict[str, bool] = {}
        num_texts = 0
        for text in index.transcripts():
            for character in text:
                if character not in unknown:
                    unknown[character] = bool(tokenizer.unknown_characters(character))
            if any(unknown[character] for character in text):
                num_texts += 1
        characters = "".join(sorted(character for character in unknown if unknown[character]))
        if characters:
            display.say(
                f"{entry.label}: {num_texts} of {len(index)} texts have characters that the tokenizer does not know, "
                f"and no model will write them: {characters[:MAX_SHOWN_CHARACTERS]}"
            )


def _report_infeasible(
    recipe: Recipe, index: "SplitIndex", min_frames: "AnyIntegers", file: Path, display: Display
) -> None:
    """Name the utterances that a training excludes because CTC could not write them, all of them in a file."""
    from launcher.stages.feasibility import describe_infeasible, infeasible_by_stage

    rows = []
    for stage_rows in infeasible_by_stage(recipe, index, min_frames):
        if stage_rows:
            display.say(f"tokenizer: {describe_infeasible(stage_rows, len(index))}")
        rows += stage_rows
    write_lines(file, rows)


def training_texts(recipe: Recipe, run: RunFolder, index: "SplitIndex") -> Iterable[str]:
    """The transcripts of an index that a tokenizer is trained on, those of a mixture as often as it reads them."""
    from data.sampling.mixture import draw_texts
    from launcher.stages.training_sampler import mixture_parts

    if not isinstance(recipe.corpus, MixtureCorpus):
        return (text for text in index.transcripts() if text)
    mixture = recipe.corpus.initial_mixture
    parts, part = mixture_parts(mixture, run, index)
    return draw_texts(parts, part, index, mixture, recipe.seed)
