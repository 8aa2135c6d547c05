"""`chorus evaluate RUN`: the evaluations of a run, with other searches too, and their results.

With shards or manifests behind it, the command evaluates a finished model on them: `evaluate_set`.
"""

import argparse
import json
import sys
from pathlib import Path

from launcher.commands.evaluate_options import options_of_sets
from launcher.commands.evaluate_set import evaluate_data
from launcher.commands.search_options import search_values
from launcher.devices import recognition_device
from launcher.errors import CheckpointError, ConfigError
from launcher.executor import Executor
from launcher.inference.model_lookup import find_model
from launcher.monitoring.progress import Display, PlainDisplay, open_display
from launcher.monitoring.status import load_run_recipe, open_run
from launcher.processes.local import LocalLauncher
from launcher.processes.stop_request import StopRequest
from launcher.recipe import EvaluateStage, Recipe
from launcher.recipe.search import check_search_files
from launcher.remote_run import is_run_url
from launcher.report import results_table
from launcher.run_files import read_results
from launcher.run_folder import RunFolder


def evaluate(options: argparse.Namespace, stop: StopRequest) -> int:
    if options.data:
        return evaluate_data(options, stop)
    with stop.interrupting():
        # RUN or RUN/STAGE.
        path = Path(options.run).expanduser()
        if is_run_url(options.run):
            # fsspec takes long to import.
            from launcher.remote_run.reading import Wanted, local_copy

            path = local_copy(options.run, Wanted.WITH_MODELS)
        stage = None
        if not RunFolder(path).state_file.is_file() and RunFolder(path.parent).state_file.is_file():
            stage = path.name
            path = path.parent
        if not RunFolder(path).state_file.is_file() and _is_model(options.run):
            raise ConfigError(
                f"{options.run} is a model of no run, whose evaluations could be repeated. Say what it is to "
                f"recognise: chorus evaluate {options.run} SHARDS, or a manifest."
            )
        given = options_of_sets(options)
        if given:
            raise ConfigError(
                f"{', '.join(given)} is for shards or manifests, and none is named. The evaluations of a run are as "
                f"its recipe says; to evaluate one of its models otherwise, give chorus evaluate {path}/STAGE SHARDS."
            )
        run = open_run(path)
        recipe = load_run_recipe(run)
        evaluations = _evaluations(recipe, stage)
        changed = _changed_recipe(recipe, run, evaluations, options)

    display: Display
    if options.json:
        # Standard output is for the results alone.
        display = PlainDisplay(sys.stderr)
    else:
        display = open_display(sys.stdout)
    with run.locked():
        # One process, which needs none of the hosts that the run was trained on.
        executor = Executor(changed or recipe, run, stop, display, LocalLauncher(recipe.cluster))
        if changed:
            executor.write_recipe()
        executor.run(only=evaluations)

    if not options.json:
        print(results_table(run.path))
        return 0
    results = read_results(run) or {"models": {}}
    models = {}
    # results.json is of all evaluations of the run: shown are those that were asked for.
    for name, result in results["models"].items():
        if stage is None or stage == name or stage in evaluations:
            models[name] = result
    print(json.dumps({"models": models}, ensure_ascii=False, indent=2))
    return 0


def _is_model(name: str) -> bool:
    try:
        find_model(name)
    except CheckpointError:
        return False
    return True


def _evaluations(recipe: Recipe, stage: str | None) -> frozenset[str]:
    """Return the names of a run's evaluations, or of those that are, or include, a stage."""
    if stage is not None:
        # Refuses a name that is none.
        recipe.stage(stage)
    names = set()
    for evaluation in recipe.stages:
        if not isinstance(evaluation, EvaluateStage):
            continue
        if stage is None or stage == evaluation.name or stage in evaluation.models:
            names.add(evaluation.name)
    if not names:
        of_stage = ""
        if stage:
            of_stage = f" of {stage}"
        raise ConfigError(
            f"Recipe {recipe.name} has no evaluation{of_stage}. Add a stage of kind evaluate to the recipe and run it "
            "again; what is done is not repeated."
        )
    return frozenset(names)


def _changed_recipe(
    recipe: Recipe, run: RunFolder, evaluations: frozenset[str], options: argparse.Namespace
) -> Recipe | None:
    """Return the recipe with the options' settings of its evaluations, None without any; ConfigError for others."""
    overrides = list(options.set)
    if options.device is not None:
        # Before anything is started.
        recognition_device(options.device)
        for name in sorted(evaluations):
            overrides.append(f"stages.{name}.device={options.device}")
    search = search_values(options)
    if search:
        for name in sorted(evaluations):
            overrides.append(f"stages.{name}.search={json.dumps(search, ensure_ascii=False)}")
    changed = load_run_recipe(run, overrides)
    for stage in changed.stages:
        if isinstance(stage, EvaluateStage) and stage.name in evaluations:
            check_search_files(stage.search, f"stages.{stage.name}.search")
    if not overrides:
        return None
    # What is trained would no longer be what the recipe in the run folder says.
    if _without_evaluations(changed) != _without_evaluations(recipe):
        raise ConfigError(
            f"--set {' --set '.join(options.set)} changes more than the evaluations of {run.path}. `chorus "
            "evaluate` takes settings of evaluations alone; `chorus run RECIPE --set ...` takes any."
        )
    return changed


def _without_evaluations(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"stages": tuple(recipe.training_stages())})
