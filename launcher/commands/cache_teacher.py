"""`chorus cache-teacher`: what the teachers of a stage give, stored once, so that training reads it.

A run that is in use is left alone. Stopped, it says so with exit code 75; the same command goes on.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from launcher.errors import ConfigError
from launcher.progress import duration, open_display
from launcher.recipe import DistillStage, Recipe, check_model_folders, load_recipe
from launcher.run_folder import RunFolder
from launcher.status import open_run
from launcher.stopping import StopRequest
from launcher.teacher_cache import caches_folder
from launcher.training.caching import CacheReport, cache_teachers


def cache_teacher(options: argparse.Namespace, stop: StopRequest) -> int:
    with stop.interrupting():
        place = Path(options.stage).expanduser()
        run = open_run(place.parent)
        recipe = load_recipe(run.recipe_file)
        stage = recipe.training_stage(place.name)
        if not isinstance(stage, DistillStage):
            raise ConfigError(f"Stage {stage.name} of recipe {recipe.name} has no teacher: it is of kind {stage.kind}.")
        check_model_folders(recipe)
        root = Path(options.out).expanduser().absolute() if options.out else _beside_shards(recipe, run, stage)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        display = open_display(sys.stderr)
        display.begin(f"cache-teacher {stage.name}", 1)
        try:
            with run.locked():
                reports = cache_teachers(recipe, run, stage, root, display, device, options.verify)
                for report in reports:
                    run.append_event("teacher_cached", stage=stage.name, **_as_dict(report))
        finally:
            display.end()
    if options.json:
        print(json.dumps({"caches": [_as_dict(report) for report in reports]}, ensure_ascii=False, indent=2))
        return 0
    for report in reports:
        print(_describe(report))
    return 0


def _beside_shards(recipe: Recipe, run: RunFolder, stage: DistillStage) -> Path:
    folder = caches_folder(recipe, run, stage)
    if folder is None:
        raise ConfigError(
            f"The shards of recipe {recipe.name} are at {recipe.split_folder(run, 'train')}, where nothing can be "
            "stored beside them. Pass --out DIR, and name the folder in distill.cache.folder for the training."
        )
    return folder


def _as_dict(report: CacheReport) -> dict[str, object]:
    return {
        "teacher": report.teacher,
        "folder": str(report.folder),
        "shards": report.shards,
        "written": report.written,
        "bytes": report.bytes,
        "audio_s": round(report.seconds, 3),
        "left_out": list(report.left_out),
    }


def _describe(report: CacheReport) -> str:
    done = f"{report.written} of {report.shards} shards written" if report.written else "nothing to do"
    left_out = f"; left out, not readable: {', '.join(report.left_out)}" if report.left_out else ""
    return (
        f"{report.teacher}: {done}, {report.bytes / 1e6:.1f} MB for {duration(report.seconds)} of audio at all speeds, "
        f"in {report.folder}{left_out}"
    )
