"""Shows the results of an evaluation in its own W&B run: error rates, and examples with their audio.

It comes after the results are on the disk, takes no longer than TIMEOUT_S, and changes nothing about them.
"""

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jiwer
import soundfile

from data.shards.index import read_index
from data.shards.reader import ShardReader
from launcher.inference.error_counts import count_errors
from launcher.recipe import EvaluateStage
from launcher.stages.context import StageContext
from launcher.stages.lineage import made_artifacts, used_artifacts
from launcher.tracking import Sound, Table, Tracker

logger = logging.getLogger(__name__)

TIMEOUT_S = 60.0
COLUMNS = ("key", "audio", "reference", "hypothesis", "word_errors", "words", "character_errors", "characters")


def track_evaluation(context: StageContext[EvaluateStage], results: dict[str, Any]) -> None:
    """Show what `launcher.inference.evaluation.evaluate` returned. Failures are in the stage's logs."""
    tracker = Tracker(
        context.folder.path,
        context.recipe.tracking,
        run_name=context.recipe.name,
        recipe=context.recipe.model_dump(mode="json"),
        resume_step=None,
    )
    tracker.artifacts(lambda: used_artifacts(context), used=True)
    folders = context.recipe.split_folders(context.run, context.stage.split)
    for name, model in results["models"].items():
        # Every number of a model's results, as NAME/SPLIT/METRIC or NAME/METRIC.
        summary: dict[str, float] = {}
        for key, value in model.items():
            if isinstance(value, int | float):
                summary[f"{name}/{key}"] = value
            elif isinstance(value, dict):
                for metric, number in value.items():
                    if isinstance(number, int | float):
                        summary[f"{name}/{key}/{metric}"] = number
                # Of a mixture, those of each corpus.
                for label, result in value.get("sets", {}).items():
                    for metric in ("cer", "wer", "utterances"):
                        summary[f"{name}/{key}/{label}/{metric}"] = result[metric]
        tracker.summarize(summary)
        table_name = f"examples/{name}"
        examples = model["examples"]
        # The defaults bind this turn's values: the tracker calls it later, on a thread of its own.
        tracker.table(lambda name=table_name, examples=examples: examples_table(name, examples, folders))
    tracker.artifacts(lambda: made_artifacts(context), used=False)
    tracker.close(TIMEOUT_S)
    if tracker.num_dropped:
        logger.warning(
            "%d records of the evaluation were not shown; the logs in %s say why",
            tracker.num_dropped,
            context.folder.logs,
        )


def examples_table(name: str, examples: list[dict[str, str]], folders: Mapping[str, Path | str]) -> Table:
    """Examples of one model with their errors, and their audio from the shards of a split, at the shards' rate.

    `folders` has the split of each corpus by its label, "" where there is no mixture.
    """
    rows = []
    for label, folder in folders.items():
        of_corpus = [example for example in examples if example.get("corpus", "") == label]
        if of_corpus:
            rows += _example_rows(of_corpus, folder)
    return Table(name, COLUMNS, rows)


def _example_rows(examples: list[dict[str, str]], folder: Path | str) -> list[list[Any]]:
    # Of what was scored; a shard that is missing may not hold any of it.
    index = read_index(folder, check_shards=False)
    # A table is not worth waiting for: after TIMEOUT_S it is dropped.
    reader = ShardReader(index, attempts=1)
    wanted_keys = {example["key"] for example in examples}
    position_of_key = {}
    # One pass over the keys, which are stored front to back and may be millions.
    for position, key in enumerate(index.keys()):
        if key in wanted_keys:
            position_of_key[key] = position

    rows = []
    for example in examples:
        reference = example["reference"]
        hypothesis = example["hypothesis"]
        utterance = reader.read(position_of_key[example["key"]])
        flac = io.BytesIO()
        soundfile.write(flac, utterance.waveform, index.sample_rate_hz, format="FLAC")
        sound = Sound(flac.getvalue(), index.sample_rate_hz)
        word_errors, words = count_errors(jiwer.process_words(reference, hypothesis))
        character_errors, characters = count_errors(jiwer.process_characters(reference, hypothesis))
        # In the order of COLUMNS.
        row = [
            example["key"],
            sound,
            reference,
            hypothesis,
            word_errors,
            words,
            character_errors,
            characters,
        ]
        rows.append(row)
    return rows
