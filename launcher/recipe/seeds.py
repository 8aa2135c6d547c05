"""The same stages with several seeds: what `seeds` in a recipe stands for.

`seeds: [1, 2, 3]` turns every training stage NAME into NAME-1, NAME-2 and NAME-3, each with its seed and with `repeats:
NAME`; a teacher or a start that is a stage becomes the one of the same seed, and evaluations evaluate them all. Corpus
and tokenizer follow the recipe's own seed, so that all of them hear and write the same.
"""

from typing import Any

from launcher.errors import ConfigError
from launcher.run_folder import TRAINING_KINDS

KEY = "seeds"


def repeat_stages(values: dict[str, Any]) -> None:
    """Write the stages of a recipe's plain values out for each of its seeds, in place; ConfigError for odd seeds.

    Whatever else is wrong with a stage is left as it is, for the schema to say.
    """
    if KEY not in values:
        return
    seeds, stages = values.pop(KEY), values.get("stages")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ConfigError(f"seeds is {seeds!r}, which is not a list of whole numbers from 0, such as [1, 2, 3].")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds is {seeds}, which has a seed twice; each makes stages of its own, so name it once.")
    if not isinstance(stages, list):
        return
    names = {stage.get("name") for stage in stages if _trains(stage)}
    repeated = []
    for stage in stages:
        if _trains(stage):
            repeated += [_with_seed(stage, seed, names) for seed in seeds]
        elif isinstance(stage, dict) and isinstance(stage.get("models"), list):
            models = [
                f"{model}-{seed}" if model in names else model
                for model in stage["models"]
                for seed in (seeds if model in names else seeds[:1])
            ]
            repeated.append({**stage, "models": models})
        else:
            repeated.append(stage)
    values["stages"] = repeated


def _trains(stage: Any) -> bool:
    return isinstance(stage, dict) and stage.get("kind") in TRAINING_KINDS and isinstance(stage.get("name"), str)


def _with_seed(stage: dict[str, Any], seed: int, names: set[Any]) -> dict[str, Any]:
    """A stage under a seed; the stages that it learns or starts from are those of the same seed."""

    def of_seed(model: Any) -> Any:
        return f"{model}-{seed}" if model in names else model

    copy = {**stage, "name": of_seed(stage["name"]), "seed": seed, "repeats": stage["name"]}
    copy |= {key: of_seed(stage[key]) for key in ("teacher", "initialize_from") if key in stage}
    if isinstance(stage.get("teachers"), list):
        copy["teachers"] = [
            {**teacher, "model": of_seed(teacher.get("model"))} if isinstance(teacher, dict) else teacher
            for teacher in stage["teachers"]
        ]
    return copy
