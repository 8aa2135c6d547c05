"""`chorus cache-teacher`: the outputs of a stage's teachers, stored once, so that training reads them.

A run that is in use is left alone. Stopped, it says so with exit code 75; the same command goes on.
"""

import argparse
import json
import sys
from pathlib import Path

from launcher.errors import ConfigError
from launcher.monitoring.progress import open_display
from launcher.monitoring.status import load_run_recipe, open_run
from launcher.processes.stop_request import StopRequest
from launcher.recipe import DistillStage, check_model_folders
from launcher.stages.context import StageContext
from launcher.training.teachers.cache_match import folder_for_caches
from launcher.training.write_teacher_cache import cache_teachers


def cache_teacher(options: argparse.Namespace, stop: StopRequest) -> int:
    with stop.interrupting():
        stage_folder = Path(options.stage).expanduser()
        run = open_run(stage_folder.parent)
        recipe = load_run_recipe(run)
        stage = recipe.training_stage(stage_folder.name)
        if not isinstance(stage, DistillStage):
            raise ConfigError(f"Stage {stage.name} of recipe {recipe.name} has no teacher: it is of kind {stage.kind}.")
        check_model_folders(recipe)
        context = StageContext(recipe, run, stage)
        if options.out:
            root = Path(options.out).expanduser().absolute()
        else:
            root = folder_for_caches(context)
        # A launcher that goes on with the run meanwhile would store the same.
        with run.locked():
            reports = cache_teachers(context, root, open_display(sys.stderr), options.verify)
    if options.json:
        caches = [report.as_dict() for report in reports]
        print(json.dumps({"caches": caches}, ensure_ascii=False, indent=2))
        return 0
    for report in reports:
        print(report.describe())
    return 0
