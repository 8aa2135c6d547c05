"""`chorus export`: a finished model from any checkpoint of a stage, without starting a process group.

Refuses to write into a folder that holds something already.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from data.features import FeaturesConfig
from launcher.errors import CheckpointError, ConfigError
from launcher.inference.finished_model import write_finished_model
from launcher.monitoring.status import load_run_recipe, open_run
from launcher.recipe import validate
from launcher.run_files import read_set_aside
from launcher.run_folder import StageFolder
from launcher.stages.pipeline import Pipeline
from launcher.training.checkpoint import open_checkpoint
from model.masked_prediction import MaskedPredictorConfig
from model.recognizer import RecognizerConfig


def export(options: argparse.Namespace) -> int:
    place = Path(options.stage).expanduser()
    run = open_run(place.parent)
    recipe = load_run_recipe(run)
    folder_of_stage = run.stage(place.name)
    record = read_set_aside(folder_of_stage)
    if record is None:
        stage = recipe.training_stage(place.name)
        config = stage.model
        features = recipe.features
    else:
        # The recipe has other settings by now: those of this work are in its record.
        config, features = _recorded_model(record, folder_of_stage, Pipeline(recipe, run))
    checkpoint = open_checkpoint(folder_of_stage, options.step)

    if options.out:
        folder = Path(options.out).expanduser().absolute()
    else:
        folder = folder_of_stage.export(checkpoint.step)
    is_empty_folder = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_empty_folder:
        raise ConfigError(f"{folder} is there already. Remove it, or name another folder with --out.")

    write_finished_model(folder, run, config, features, checkpoint.weights())
    if options.json:
        print(json.dumps({"model": str(folder), "step": checkpoint.step}))
    else:
        print(folder)
    return 0


def _recorded_model(
    record: dict[str, Any], folder: StageFolder, pipeline: Pipeline
) -> tuple[RecognizerConfig | MaskedPredictorConfig, FeaturesConfig]:
    """The model and the front-end of work that was set aside; CheckpointError when its tokenizer is gone."""
    for node in pipeline.nodes:
        expected = record["inputs"].get(node.name)
        if node.kind in ("tokenizer", "features") and expected not in (None, pipeline.output_hash(node)):
            raise CheckpointError(
                f"{folder.path} was trained with another {node.name} than the run has now, so that its outputs could "
                "not be read. Run the recipe with the settings that it had; then export the stage."
            )
    source = f"{folder.record_file}: model"
    features = validate(FeaturesConfig, record["settings"].get("features"), f"{folder.record_file}: features")
    if record["kind"] == "self_supervised":
        return validate(MaskedPredictorConfig, record["settings"].get("model"), source), features
    return validate(RecognizerConfig, record["settings"].get("model"), source), features
