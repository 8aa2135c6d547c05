"""The same stages with several seeds: what `seeds` in a recipe stands for.

`seeds: [1, 2, 3]` turns every training stage NAME into NAME-1, NAME-2 and NAME-3, each with its seed and with `repeats:
NAME`; a teacher or a start that is a stage becomes the one of the same seed, and evaluations evaluate them all. Corpus
and tokenizer follow the recipe's own seed, so that all of them have the same recordings and the same tokens.
"""

from typing import Any

from launcher.errors import ConfigError
from launcher.run_folder import TRAINING_KINDS

SEEDS_KEY = "seeds"


def repeat_stages(values: dict[str, Any]) -> None:
    """Write the stages of a recipe's plain values out for each of its seeds, in place; ConfigError for odd seeds.

    Whatever else is wrong with a stage is left as it is, for the schema to say.
    """
    if SEEDS_KEY not in values:
        return
    seeds = values.pop(SEEDS_KEY)
    check_seeds(seeds)

    stages = values.get("stages")
    if not isinstance(stages, list):
        return

    names = {stage["name"] for stage in stages if _trains(stage)}
    repeated = []
    for stage in stages:
        if _trains(stage):
            for seed in seeds:
                repeated.append(_with_seed(stage, seed, names))
        elif isinstance(stage, dict) and isinstance(stage.get("models"), list):
            # An evaluation compares its models under every seed; what is no repeated stage stays as it is.
            models = []
            for model in stage["models"]:
                if isinstance(model, str) and model in names:
                    models += [f"{model}-{seed}" for seed in seeds]
                else:
                    models.append(model)
            repeated.append({**stage, "models": models})
        else:
            repeated.append(stage)
    values["stages"] = repeated


def check_seeds(seeds: Any) -> None:
    """Refuse (ConfigError) what is not a list of different whole numbers from 0."""
    # type(seed) is int, because True is an int to isinstance.
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ConfigError(f"seeds is {seeds!r}, which is not a list of whole numbers from 0, such as [1, 2, 3].")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds is {seeds}, which has a seed twice; each makes stages of its own, so name it once.")


def _trains(stage: Any) -> bool:
    return isinstance(stage, dict) and stage.get("kind") in TRAINING_KINDS and isinstance(stage.get("name"), str)


def _with_seed(stage: dict[str, Any], seed: int, names: set[str]) -> dict[str, Any]:
    """A stage under a seed; the stages that it learns or starts from are those of the same seed."""
    copy = dict(stage)
    copy["name"] = f"{stage['name']}-{seed}"
    copy["seed"] = seed
    # Comparisons put the seeds of a stage together by this name.
    copy["repeats"] = stage["name"]
    for key in ("teacher", "initialize_from"):
        if key in stage:
            copy[key] = _model_of_seed(stage[key], seed, names)

    if isinstance(stage.get("teachers"), list):
        copy["teachers"] = []
        for teacher in stage["teachers"]:
            if isinstance(teacher, dict):
                teacher = {**teacher, "model": _model_of_seed(teacher.get("model"), seed, names)}
            copy["teachers"].append(teacher)
    return copy


def _model_of_seed(model: Any, seed: int, names: set[str]) -> Any:
    """The name of a repeated stage under a seed; anything else, such as a folder, as it is."""
    if isinstance(model, str) and model in names:
        return f"{model}-{seed}"
    return model
