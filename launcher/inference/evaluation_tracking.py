"""Shows the results of an evaluation in its own W&B run: error rates, and examples with their audio.

It comes after the results are on the disk, takes no longer than TIMEOUT_S, and changes nothing about them.
"""

import io
import logging
from pathlib import Path
from typing import Any

import jiwer
import soundfile

from data.reader import ShardReader
from data.shard_index import read_index
from launcher.inference.error_counts import count_errors
from launcher.recipe import EvaluateStage
from launcher.stages.context import StageContext
from launcher.stages.lineage import made_artifacts, used_artifacts
from launcher.tracking import Sound, Table, Tracker

logger = logging.getLogger(__name__)

TIMEOUT_S = 60.0
COLUMNS = ("key", "audio", "reference", "hypothesis", "word_errors", "words", "character_errors", "characters")


def track_evaluation(context: StageContext[EvaluateStage], found: dict[str, Any]) -> None:
    """Show `found`, what `launcher.inference.evaluation.evaluate` returned. What fails is in the stage's logs."""
    recipe, run, stage = context.recipe, context.run, context.stage
    tracker = Tracker(
        run.stage(stage.name).path,
        recipe.tracking,
        run_name=recipe.name,
        recipe=recipe.model_dump(mode="json"),
        resume_step=None,
    )
    tracker.artifacts(lambda: used_artifacts(context), used=True)
    folder = recipe.split_folder(run, stage.split)
    for name, model in found["models"].items():
        tracker.summarize(_numbers(name, model))
        tracker.table(lambda name=name, model=model: examples_table(f"examples/{name}", model["examples"], folder))
    tracker.artifacts(lambda: made_artifacts(context), used=False)
    tracker.close(TIMEOUT_S)
    if tracker.unmirrored:
        logs = run.stage(stage.name).logs
        logger.warning("%d records of the evaluation were not shown; the logs in %s say why", tracker.unmirrored, logs)


def _numbers(name: str, model: dict[str, Any]) -> dict[str, float]:
    """Every number of a model's results as NAME/SPLIT/MEASURE or NAME/MEASURE."""
    flat: dict[str, float] = {}
    for key, value in model.items():
        for inner, number in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(number, int | float):
                flat["/".join(filter(None, (name, key, inner)))] = number
    return flat


def examples_table(name: str, examples: list[dict[str, str]], folder: Path | str) -> Table:
    """Examples of one model with their errors, and their audio from a split's shards at the shards' rate."""
    index = read_index(folder)
    reader = ShardReader(index, attempts=1)
    wanted = {example["key"] for example in examples}
    positions = {key: position for position, key in enumerate(index.keys()) if key in wanted}
    rows = []
    for example in examples:
        waveform = reader.read(positions[example["key"]]).waveform
        flac = io.BytesIO()
        soundfile.write(flac, waveform, index.sample_rate_hz, format="FLAC")
        pair = example["reference"], example["hypothesis"]
        errors = *count_errors(jiwer.process_words(*pair)), *count_errors(jiwer.process_characters(*pair))
        sound = Sound(flac.getvalue(), index.sample_rate_hz)
        rows.append([example["key"], sound, *pair, *errors])
    return Table(name, COLUMNS, rows)
