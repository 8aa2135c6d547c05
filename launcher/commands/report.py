"""`chorus report`: a run's report, written anew."""

import argparse
import json
import sys

from launcher.monitoring.status import load_run_recipe, open_run
from launcher.recipe import EvaluateStage
from launcher.remote_run import is_run_url
from launcher.run_folder import RunFolder


def report(options: argparse.Namespace) -> int:
    """Write the page and print its path; with `--analyse`, what it shows of evaluations that did not keep it first."""
    path = options.run
    if options.analyse and is_run_url(path):
        # fsspec takes long to import.
        from launcher.remote_run.reading import Wanted, local_copy

        path = local_copy(path, Wanted.WITH_MODELS)
    run = open_run(path)
    if options.analyse:
        _analyse(run)

    # Imports matplotlib.
    from launcher.report import write_report

    write_report(run.path)
    if options.json:
        print(json.dumps({"report": str(run.report_file)}))
    else:
        print(run.report_file)
    return 0


def _analyse(run: RunFolder) -> None:
    """Look at the hardest utterances and the experts of every evaluation that is done."""
    # Imports torch.
    from launcher.inference.analysis import analyse_evaluation
    from launcher.stages.context import StageContext

    recipe = load_run_recipe(run)
    for stage in recipe.stages:
        if not isinstance(stage, EvaluateStage):
            continue
        models = []
        for model in stage.models:
            if run.stage(stage.name).hypotheses_file(model).is_file():
                models.append(model)
        if not models:
            print(f"{stage.name}: no model has been evaluated yet, so there is nothing to analyse", file=sys.stderr)
            continue
        print(f"{stage.name}: looking at {', '.join(models)}", file=sys.stderr)
        # Of an evaluation that was made before its last models were trained, those that are there.
        analyse_evaluation(StageContext(recipe, run, stage.model_copy(update={"models": tuple(models)})))
