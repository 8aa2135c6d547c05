"""results.json: the results of a run's evaluations."""

from typing import Any

from launcher.recipe import EvaluateStage, Recipe
from launcher.run_files import read_evaluation
from launcher.run_folder import RunFolder, write_json


def merge_results(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Write results.json from the evaluations that are there, and return it.

    Every model has its parameter counts and, under the name of each split, cer and wer (fractions), utterances, rtf and
    the search. The results of later evaluations of the same split are under SPLIT/EVALUATION.
    """
    models: dict[str, dict[str, Any]] = {}
    for stage in recipe.stages:
        if not isinstance(stage, EvaluateStage):
            continue
        evaluation = read_evaluation(run.stage(stage.name)) or {"models": {}}
        for name, evaluated in evaluation["models"].items():
            model = models.setdefault(name, {})
            for key, value in evaluated.items():
                # They stay with their evaluation: results are numbers.
                if key == "examples":
                    continue
                if key == stage.split and key in model:
                    key = f"{key}/{stage.name}"
                model[key] = value
    results = {"models": models}
    write_json(run.results_file, results)
    return results
