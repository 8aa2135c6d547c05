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
                # A second evaluation, with another search, must not hide the first.
                if key == stage.split and key in model:
                    key = f"{key}/{stage.name}"
                model[key] = value
    results = {"models": models}
    write_json(run.results_file, results)
    return results


def describe_quarantined(results: dict[str, Any], stage: EvaluateStage) -> list[str]:
    """A sentence per model of an evaluation that could not read some utterances: error rates are those of the others.

    `results` are those of `merge_results`; evaluations of earlier versions do not count such utterances.
    """
    sentences: list[str] = []
    for name in stage.models:
        model = results["models"].get(name, {})
        evaluated = model.get(f"{stage.split}/{stage.name}") or model.get(stage.split) or {}
        num_quarantined = evaluated.get("quarantined", 0)
        if num_quarantined:
            utterances = f"{num_quarantined} utterances of {stage.split}"
            sentences.append(f"{utterances} could not be read and are not in the error rates of {name}")
    return sentences
