"""What a run found of each model, repetitions under different seeds put together.

A rung is a training stage of the recipe with all its seeds: sizes, errors of every utterance, and what training took.
It is read from what the run left, so that it can be read again at any time.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

from launcher.comparison.bootstrap import Numbers
from launcher.errors import ConfigError
from launcher.inference.error_counts import count_errors
from launcher.monitoring.goodput import measure_goodput
from launcher.recipe import AnyTrainingStage, EvaluateStage, Recipe, load_recipe
from launcher.report.run_data import RunData, StageData, average_load, read_run_data
from launcher.run_folder import RunFolder, read_json


@dataclass(frozen=True)
class Errors:
    """Errors of each seed and utterance [S, U], and the length of each utterance [U], in characters or in words."""

    errors_SU: Numbers
    lengths_U: Numbers


@dataclass(frozen=True)
class ModelResult:
    """One model of the recipe. Parameters are counts, load_entropy a fraction of the most it could be (None without
    experts), real_time_factor the median over seeds; minutes, those of the steps that are in the weights, waiting for
    data included, and audio_hours, what they heard, are means over seeds."""

    name: str
    about: str
    seeds: int
    parameters: int
    encoder_parameters: int
    characters: Errors
    words: Errors
    real_time_factor: float
    load_entropy: float | None
    minutes: float
    audio_hours: float


@dataclass(frozen=True)
class Comparison:
    """The rungs of an evaluation, in the recipe's order; `threads` are those that it ran with."""

    recipe: Recipe
    evaluation: EvaluateStage
    threads: int
    utterances: int
    seconds: float
    rungs: tuple[ModelResult, ...]


def read_comparison(run: RunFolder) -> Comparison:
    """Read the first evaluation of a finished run; ConfigError where it has none yet."""
    recipe = load_recipe(run.recipe_file)
    stage = next((stage for stage in recipe.stages if isinstance(stage, EvaluateStage)), None)
    found = read_json(run.stage(stage.name).evaluation_file) if stage else None
    if stage is None or found is None:
        raise ConfigError(
            f"The run in {run.path} has no evaluation yet, so there is nothing to compare. `chorus status {run.path}` "
            "shows how far it is; run its recipe to the end."
        )
    groups: dict[str, list[AnyTrainingStage]] = {}
    for training in recipe.training_stages():
        if training.name in stage.models:
            groups.setdefault(training.unseeded_name, []).append(training)
    evidence = read_run_data(run.path)
    rungs = tuple(
        _read_rung(run, stage, evidence, name, repetitions, found["models"]) for name, repetitions in groups.items()
    )
    measured = found["models"][stage.models[0]][stage.split]
    return Comparison(recipe, stage, measured["threads"], measured["utterances"], measured["seconds"], rungs)


def _read_rung(
    run: RunFolder,
    evaluation: EvaluateStage,
    evidence: RunData,
    name: str,
    repetitions: list[AnyTrainingStage],
    models: dict[str, dict[str, Any]],
) -> ModelResult:
    names = [stage.name for stage in repetitions]
    found = [models[one] for one in names]
    rows = [read_hypotheses(run.stage(evaluation.name).hypotheses_file(one)) for one in names]
    left = [stage for stage in evidence.stages if stage.name in names]
    entropies = [entropy for stage in left if (entropy := _load_entropy(stage)) is not None]
    return ModelResult(
        name=name,
        about=repetitions[0].about,
        seeds=len(names),
        parameters=found[0]["parameters"],
        encoder_parameters=found[0]["encoder_parameters"],
        characters=_count(rows, jiwer.process_characters),
        words=_count(rows, jiwer.process_words),
        real_time_factor=float(np.median([model[evaluation.split]["rtf"] for model in found])),
        load_entropy=float(np.mean(entropies)) if entropies else None,
        minutes=float(np.mean([_minutes(evidence, stage) for stage in left])),
        audio_hours=float(np.mean([_audio_hours(stage) for stage in left])),
    )


def read_hypotheses(path: Path) -> list[dict[str, str]]:
    """What an evaluation heard, by key; ConfigError where it was made without keeping that."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise ConfigError(
            f"There is no {path}, which holds what the evaluation heard of each utterance. Delete "
            f"{path.parents[1] / 'evaluation.json'} and run the same command as before: it evaluates again."
        ) from None
    return sorted(rows, key=lambda row: row["key"])


def _count(repetitions: list[list[dict[str, str]]], process: Any) -> Errors:
    counts = [
        [count_errors(process(row["reference"], row["hypothesis"])) for row in rows] for rows in repetitions
    ]  # seeds, utterances, (errors, length)
    counts_SU2 = np.array(counts, dtype=np.float64)
    return Errors(counts_SU2[..., 0], counts_SU2[0, :, 1])


def _minutes(evidence: RunData, stage: StageData) -> float:
    goodput = measure_goodput(evidence.events, stage.rows, stage.name)
    return (goodput.useful + goodput.data_wait) / 60 if goodput else 0.0


def _audio_hours(stage: StageData) -> float:
    rows = [row for row in stage.rows if row.get("audio_s_per_s") is not None]
    steps = np.diff([0, *(row["step"] for row in rows)])
    return sum(row["audio_s_per_s"] * row["step_s"] * count for row, count in zip(rows, steps, strict=True)) / 3600


def _load_entropy(stage: StageData) -> float | None:
    """The entropy of the experts' load at the end of training over that of even shares, mean over layers."""
    shares_LE = average_load(stage)
    if shares_LE is None:
        return None
    load_LE = np.nan_to_num(shares_LE) / np.nansum(shares_LE, axis=1, keepdims=True)
    terms_LE = -load_LE * np.log(np.where(load_LE > 0, load_LE, 1.0))
    return float(np.mean(terms_LE.sum(axis=1) / np.log(np.isfinite(shares_LE).sum(axis=1))))
