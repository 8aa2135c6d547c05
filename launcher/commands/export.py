"""`chorus export`: a finished model from any checkpoint of a stage, without starting a process group.

Refuses to write into a folder that holds something already.
"""

import argparse
import json
from pathlib import Path

from launcher.errors import ConfigError
from launcher.inference.finished_model import write_finished_model
from launcher.monitoring.status import open_run
from launcher.recipe import load_recipe
from launcher.training.checkpoint import open_checkpoint


def export(options: argparse.Namespace) -> int:
    place = Path(options.stage).expanduser()
    run = open_run(place.parent)
    recipe = load_recipe(run.recipe_file)
    stage = recipe.training_stage(place.name)
    saved = open_checkpoint(run.stage(stage.name), options.step)
    out = Path(options.out).expanduser().absolute() if options.out else run.stage(stage.name).export(saved.step)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} is there already. Remove it, or name another folder with --out.")
    write_finished_model(out, run, stage.model, recipe.features, saved.weights())
    print(json.dumps({"model": str(out), "step": saved.step}) if options.json else out)
    return 0
