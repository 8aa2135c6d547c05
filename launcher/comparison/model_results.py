"""What a run measured of each model, repetitions under different seeds put together.

A model is a training stage of the recipe with all its seeds: sizes, errors of every utterance, and what training took.
It is read from what the run left, so that it can be read again at any time.

Shapes: S seeds, U utterances, L layers with experts, E experts.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

from launcher.comparison.bootstrap import Numbers
from launcher.errors import ConfigError
from launcher.inference.error_counts import count_errors
from launcher.monitoring.goodput import measure_goodput
from launcher.monitoring.status import load_run_recipe
from launcher.recipe import AnyTrainingStage, EvaluateStage, Recipe
from launcher.report.run_data import RunData, StageData, average_load, read_run_data
from launcher.run_files import read_evaluation
from launcher.run_folder import RunFolder

Align = Callable[[str, str], jiwer.WordOutput | jiwer.CharacterOutput]


@dataclass(frozen=True)
class Errors:
    """Errors of each seed and utterance [S, U], and the length of each utterance [U], in characters or in words."""

    errors_SU: Numbers
    lengths_U: Numbers


@dataclass(frozen=True)
class ModelResult:
    """One model of the recipe.

    Parameters are counts, load_entropy a fraction of the most it could be (None without experts), real_time_factor the
    median over seeds. Means over seeds: minutes, those of the steps that are in the weights, waiting for data included,
    and audio_hours, the audio of these steps.
    """

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
    """The models of an evaluation, in the recipe's order; `threads` are those that it ran with."""

    recipe: Recipe
    evaluation: EvaluateStage
    threads: int
    utterances: int
    seconds: float
    models: tuple[ModelResult, ...]


def read_comparison(run: RunFolder) -> Comparison:
    """Read the first evaluation of a finished run; ConfigError where it has none yet."""
    recipe = load_run_recipe(run)
    evaluation = next((stage for stage in recipe.stages if isinstance(stage, EvaluateStage)), None)
    results = None
    if evaluation is not None:
        results = read_evaluation(run.stage(evaluation.name))
    if evaluation is None or results is None:
        raise ConfigError(
            f"The run in {run.path} has no evaluation yet, so there is nothing to compare. `chorus status {run.path}` "
            "shows how far it is; run its recipe to the end."
        )

    repetitions: dict[str, list[AnyTrainingStage]] = {}
    for stage in recipe.training_stages():
        if stage.name in evaluation.models:
            repetitions.setdefault(stage.unseeded_name, []).append(stage)
    run_data = read_run_data(run.path)
    models = []
    for stages in repetitions.values():
        models.append(_read_model(run, evaluation, run_data, stages, results["models"]))

    # All models of an evaluation are measured on the same utterances with the same threads.
    measured = results["models"][evaluation.models[0]][evaluation.split]
    return Comparison(
        recipe=recipe,
        evaluation=evaluation,
        threads=measured["threads"],
        utterances=measured["utterances"],
        seconds=measured["seconds"],
        models=tuple(models),
    )


def _read_model(
    run: RunFolder,
    evaluation: EvaluateStage,
    run_data: RunData,
    repetitions: Sequence[AnyTrainingStage],
    results: dict[str, dict[str, Any]],
) -> ModelResult:
    """Put the repetitions of a model together; `results` are the evaluation's, by stage."""
    stage_data = {stage.name: stage for stage in run_data.stages}
    hypotheses = []
    real_time_factors = []
    load_entropies = []
    minutes = []
    audio_hours = []
    for repetition in repetitions:
        name = repetition.name
        stage = stage_data[name]
        hypotheses.append(read_hypotheses(run.stage(evaluation.name).hypotheses_file(name)))
        real_time_factors.append(results[name][evaluation.split]["rtf"])
        # Start, validation and saving depend on the machine more than on the model. None: no step was recorded.
        goodput = measure_goodput(run_data.events, stage.rows, name)
        if goodput is None:
            minutes.append(0.0)
        else:
            minutes.append((goodput.useful + goodput.data_wait) / 60)
        audio_hours.append(_audio_hours(stage))
        load_entropy = _load_entropy(stage)
        if load_entropy is not None:
            load_entropies.append(load_entropy)

    # Seeds differ in weights and not in size.
    first = repetitions[0]
    sizes = results[first.name]
    mean_load_entropy = None
    if load_entropies:
        mean_load_entropy = float(np.mean(load_entropies))
    return ModelResult(
        name=first.unseeded_name,
        about=first.about,
        seeds=len(repetitions),
        parameters=sizes["parameters"],
        encoder_parameters=sizes["encoder_parameters"],
        characters=_count_all_errors(hypotheses, jiwer.process_characters),
        words=_count_all_errors(hypotheses, jiwer.process_words),
        real_time_factor=float(np.median(real_time_factors)),
        load_entropy=mean_load_entropy,
        minutes=float(np.mean(minutes)),
        audio_hours=float(np.mean(audio_hours)),
    )


def read_hypotheses(path: Path) -> list[dict[str, str]]:
    """The hypotheses of an evaluation, by key; ConfigError where it was made without keeping them."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ConfigError(
            f"There is no {path}, which holds the hypothesis of each utterance. Delete "
            f"{path.parents[1] / 'evaluation.json'} and run the same command as before: it evaluates again."
        ) from None
    # In one order for all seeds and models: a bootstrap replicate draws the same utterances of each.
    return sorted(map(json.loads, lines), key=lambda row: row["key"])


def _count_all_errors(hypotheses: Sequence[Sequence[dict[str, str]]], align: Align) -> Errors:
    """Count the errors of each seed's hypotheses; the lengths are those of the references, the same for all."""
    num_seeds = len(hypotheses)
    num_utterances = len(hypotheses[0])
    errors_SU = np.zeros((num_seeds, num_utterances))
    lengths_U = np.zeros(num_utterances)
    for seed, rows in enumerate(hypotheses):
        for utterance, row in enumerate(rows):
            aligned = align(row["reference"], row["hypothesis"])
            errors_SU[seed, utterance], lengths_U[utterance] = count_errors(aligned)
    return Errors(errors_SU, lengths_U)


def _audio_hours(stage: StageData) -> float:
    """The audio of all steps; a row stands for the steps since the row before."""
    seconds = 0.0
    previous_step = 0
    for row in stage.rows:
        # Rows of validations have no throughput.
        if row.get("audio_s_per_s") is None:
            continue
        num_steps = row["step"] - previous_step
        seconds += row["audio_s_per_s"] * row["step_s"] * num_steps
        previous_step = row["step"]
    return seconds / 3600


def _load_entropy(stage: StageData) -> float | None:
    """The entropy of the experts' load at the end of training over that of even shares, mean over layers."""
    load_LE = average_load(stage)
    if load_LE is None:
        return None
    # NaN fills up layers with fewer experts than another.
    probs_LE = np.nan_to_num(load_LE) / np.nansum(load_LE, axis=1, keepdims=True)
    # p log p is 0 at p = 0, where the logarithm itself is not finite.
    logs_LE = np.log(np.where(probs_LE > 0, probs_LE, 1.0))
    entropies_L = -(probs_LE * logs_LE).sum(axis=1)
    num_experts_L = np.isfinite(load_LE).sum(axis=1)
    return float(np.mean(entropies_L / np.log(num_experts_L)))
