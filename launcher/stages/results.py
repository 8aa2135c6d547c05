"""results.json: what the evaluations of a run found."""

from typing import Any

from launcher.recipe import EvaluateStage, Recipe
from launcher.run_folder import RunFolder, read_json, write_json


def merge_results(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Write results.json from the evaluations that are there, and return it.

    Every model has its parameter counts and, under the name of each split, cer and wer (fractions), utterances, rtf and
    the search. What later evaluations of the same split found is under SPLIT/EVALUATION.
    """
    models: dict[str, dict[str, Any]] = {}
    for stage in recipe.stages:
        if isinstance(stage, EvaluateStage):
            evaluation = read_json(run.stage(stage.name).evaluation_file) or {"models": {}}
            for name, found in evaluation["models"].items():
                model = models.setdefault(name, {})
                for key in (key for key in found if key != "examples"):
                    taken = key == stage.split and key in model
                    model[f"{key}/{stage.name}" if taken else key] = found[key]
    results = {"models": models}
    write_json(run.results_file, results)
    return results
