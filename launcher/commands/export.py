"""`chorus export`: a finished model from any checkpoint of a stage, without starting a process group.

Refuses to write into a folder that holds something already.
"""

import argparse
import json
from pathlib import Path

from data.features import FeaturesConfig
from launcher.errors import CheckpointError, ConfigError
from launcher.inference.finished_model import write_finished_model
from launcher.monitoring.status import load_run_recipe, open_run
from launcher.recipe import validate
from launcher.run_files import read_set_aside
from launcher.run_links import check_links
from launcher.stages.pipeline import Pipeline
from launcher.training.checkpoint import open_checkpoint
from model.masked_prediction import MaskedPredictorConfig
from model.recognizer import RecognizerConfig


def export(options: argparse.Namespace) -> int:
    place = Path(options.stage).expanduser()
    run = open_run(place.parent)
    # The model is written below the stage, unless --out says where.
    check_links(run.path)
    recipe = load_run_recipe(run)
    folder_of_stage = run.stage(place.name)
    record = read_set_aside(folder_of_stage)
    if record is None:
        stage = recipe.training_stage(place.name)
        config = stage.model
        features = recipe.features
    else:
        # The recipe has other settings by now: those of this work are in its record.
        pipeline = Pipeline(recipe, run)
        for node in pipeline.nodes:
            # Both are replaced in place when their settings change, and a model written with others would read noise.
            if node.kind not in ("tokenizer", "features"):
                continue
            expected = record["inputs"].get(node.name)
            if expected is not None and expected != pipeline.output_hash(node):
                raise CheckpointError(
                    f"{folder_of_stage.path} was trained with another {node.name} than the run has now, so that its "
                    "outputs could not be read. Run the recipe with the settings that it had; then export the stage."
                )
        settings = record["settings"]
        source = folder_of_stage.record_file
        features = validate(FeaturesConfig, settings.get("features"), f"{source}: features")
        config_type = RecognizerConfig
        if record["kind"] == "self_supervised":
            config_type = MaskedPredictorConfig
        config = validate(config_type, settings.get("model"), f"{source}: model")
    checkpoint = open_checkpoint(folder_of_stage, options.step)

    if options.out:
        folder = Path(options.out).expanduser().absolute()
    else:
        folder = folder_of_stage.export(checkpoint.step)
    # Nothing is lost in a folder that somebody made for it.
    is_empty_folder = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_empty_folder:
        raise ConfigError(f"{folder} is there already. Remove it, or name another folder with --out.")

    write_finished_model(folder, run, config, features, checkpoint.weights())
    if options.json:
        row = {"model": str(folder), "step": checkpoint.step}
        print(json.dumps(row))
    else:
        print(folder)
    return 0
