"""`chorus export`: a finished model from any checkpoint of a stage, without starting a process group.

Refuses to write into a folder that holds something already.
"""

import argparse
import json
from pathlib import Path

from launcher.errors import ConfigError
from launcher.inference.finished_model import write_finished_model
from launcher.monitoring.status import load_run_recipe, open_run
from launcher.training.checkpoint import open_checkpoint


def export(options: argparse.Namespace) -> int:
    place = Path(options.stage).expanduser()
    run = open_run(place.parent)
    recipe = load_run_recipe(run)
    stage = recipe.training_stage(place.name)
    checkpoint = open_checkpoint(run.stage(stage.name), options.step)

    if options.out:
        folder = Path(options.out).expanduser().absolute()
    else:
        folder = run.stage(stage.name).export(checkpoint.step)
    is_empty_folder = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_empty_folder:
        raise ConfigError(f"{folder} is there already. Remove it, or name another folder with --out.")

    write_finished_model(folder, run, stage.model, recipe.features, checkpoint.weights())
    if options.json:
        print(json.dumps({"model": str(folder), "step": checkpoint.step}))
    else:
        print(folder)
    return 0
