"""results.json: what every evaluation of a run found, and the table that sets each model beside its teacher."""

from typing import Any

from rich.table import Table

from launcher.recipe import DistillStage, EvaluateStage, Recipe
from launcher.run_folder import RunFolder, read_json, write_json


def merge_results(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Write results.json from the evaluations that are there, and return it.

    Every model has its parameter counts and, under the name of each split, cer and wer (fractions), utterances, rtf.
    """
    models: dict[str, dict[str, Any]] = {}
    for stage in recipe.stages:
        if isinstance(stage, EvaluateStage):
            evaluation = read_json(run.stage(stage.name).evaluation_file) or {"models": {}}
            for name, found in evaluation["models"].items():
                models.setdefault(name, {}).update({key: found[key] for key in found if key != "examples"})
    results = {"models": models}
    write_json(run.results_file, results)
    return results


def teacher_among(recipe: Recipe, models: list[str]) -> str | None:
    """Return the model that the others are measured by: a teacher of some stage, else the first."""
    teachers = [stage.teacher for stage in recipe.stages if isinstance(stage, DistillStage)]
    return next((name for name in models if name in teachers), models[0] if models else None)


def results_table(recipe: Recipe, results: dict[str, Any]) -> Table:
    """Return one row per model and split: encoder parameters, their share of the teacher's, error rates, speed."""
    models = results["models"]
    teacher = teacher_among(recipe, list(models))
    table = Table("model", title=f"{recipe.name}: results", title_justify="left")
    for heading in ("encoder parameters", f"of {teacher}", "split", "CER", "WER", "RTF"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for name, found in models.items():
        share = found["encoder_parameters"] / models[teacher]["encoder_parameters"]
        for split, rates in found.items():
            if isinstance(rates, dict):
                table.add_row(
                    name,
                    f"{found['encoder_parameters']:,}",
                    f"{share:.1%}",
                    split,
                    f"{rates['cer']:.2%}",
                    f"{rates['wer']:.2%}",
                    f"{rates['rtf']:.3f}",
                )
    return table
