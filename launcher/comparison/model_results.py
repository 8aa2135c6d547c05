"""What trainings achieved: sizes, the errors of every utterance, and what training cost.

A model is a training stage of a recipe with all its seeds. Trainings are read from finished runs, or from records that
were made of them (`records`), and put together here.

Shapes: S seeds, U utterances, L layers with experts, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

from data.errors import DataError
from launcher.errors import ConfigError
from launcher.inference.bootstrap import Numbers
from launcher.inference.hypotheses import count_all_errors, read_hypotheses
from launcher.monitoring.goodput import Event, measure_goodput
from launcher.monitoring.status import load_run_recipe
from launcher.recipe import AdaptStage, AnyTrainingStage, DistillStage, EvaluateStage, PretrainStage, Recipe
from launcher.report.run_data import StageData, average_load, read_run_data
from launcher.run_files import read_evaluation
from launcher.run_folder import RunFolder, is_number
from launcher.stages.fingerprint import hash_value
from launcher.stages.settings import training_settings


@dataclass(frozen=True)
class EvaluationSet:
    """What models were evaluated on, and how.

    sha256: of the keys and references. Lengths are those of each reference. threads are those that the search ran with.
    """

    split: str
    search: str
    threads: int
    seconds: float
    sha256: str
    characters: tuple[int, ...]
    words: tuple[int, ...]

    @property
    def utterances(self) -> int:
        return len(self.characters)


@dataclass(frozen=True)
class Training:
    """One finished training stage, evaluated.

    model: the stage's name without its seed. teacher: that of the model it learnt from; compare_to: models that it is
    set against. settings_sha256: of what decides the result, but for the seed. minutes: those of the steps that are in
    the weights, waiting for data included. operations: floating-point operations of all steps, teachers' included; they
    do not depend on what else the machine did. whole_operations: with those of the models that it learnt or started
    from, None where they are not of its run. load_entropy: a fraction of the most it could be, None without experts.
    """

    stage: str
    model: str
    about: str
    seed: int
    recipe: str
    settings_sha256: str
    steps: int
    teacher: str | None
    compare_to: tuple[str, ...]
    parameters: int
    encoder_parameters: int
    real_time_factor: float
    load_entropy: float | None
    minutes: float
    operations: float
    whole_operations: float | None
    audio_hours: float
    character_errors: tuple[int, ...]
    word_errors: tuple[int, ...]


@dataclass(frozen=True)
class Errors:
    """Errors of each seed and utterance [S, U], and the length of each utterance [U], in characters or in words."""

    errors_SU: Numbers
    lengths_U: Numbers


@dataclass(frozen=True)
class ModelResult:
    """A model with all its seeds, in ascending order.

    real_time_factor is the median over seeds; minutes, operations, audio_hours and load_entropy are means.
    """

    name: str
    about: str
    seeds: tuple[int, ...]
    steps: int
    teacher: str | None
    compare_to: tuple[str, ...]
    parameters: int
    encoder_parameters: int
    characters: Errors
    words: Errors
    real_time_factor: float
    load_entropy: float | None
    minutes: float
    operations: float
    whole_operations: float | None
    audio_hours: float


@dataclass(frozen=True)
class Comparison:
    """Models that were evaluated on the same utterances, in the order in which they are to be read."""

    title: str
    evaluated: EvaluationSet
    models: tuple[ModelResult, ...]


def read_comparison(run: RunFolder) -> Comparison:
    """Read the first evaluation of a finished run; ConfigError where it has none yet."""
    recipe_name, evaluated, trainings = read_trainings(run)
    return compare_trainings(recipe_name, evaluated, trainings)


def compare_trainings(title: str, evaluated: EvaluationSet, trainings: Sequence[Training]) -> Comparison:
    """Put the seeds of each model together, the models in the order of their first trainings.

    ConfigError where seeds of a model were trained in different ways: they are no repetitions of each other.
    """
    repetitions: dict[str, list[Training]] = {}
    for training in trainings:
        repetitions.setdefault(training.model, []).append(training)
    models = []
    for same_model in repetitions.values():
        # In the order in which the page gives their rates.
        same_model.sort(key=lambda training: training.seed)
        models.append(_put_together(evaluated, same_model))
    return Comparison(title, evaluated, tuple(models))


def _put_together(evaluated: EvaluationSet, repetitions: Sequence[Training]) -> ModelResult:
    first = repetitions[0]
    character_errors = []
    word_errors = []
    real_time_factors = []
    minutes = []
    operations = []
    audio_hours = []
    load_entropies = []
    whole_operations = []
    for repetition in repetitions:
        if repetition.settings_sha256 != first.settings_sha256:
            raise ConfigError(
                f"{first.stage} and {repetition.stage} are seeds of {first.model}, but were trained under different "
                "settings, so they cannot be put together. Give one of them another name in its recipe, or leave its "
                "run or record out."
            )
        character_errors.append(repetition.character_errors)
        word_errors.append(repetition.word_errors)
        real_time_factors.append(repetition.real_time_factor)
        minutes.append(repetition.minutes)
        operations.append(repetition.operations)
        audio_hours.append(repetition.audio_hours)
        if repetition.load_entropy is not None:
            load_entropies.append(repetition.load_entropy)
        if repetition.whole_operations is not None:
            whole_operations.append(repetition.whole_operations)

    # Floating-point: bootstrap replicates are products of matrices.
    characters_U = np.array(evaluated.characters, dtype=np.float64)
    words_U = np.array(evaluated.words, dtype=np.float64)
    character_errors_SU = np.array(character_errors, dtype=np.float64)
    word_errors_SU = np.array(word_errors, dtype=np.float64)
    return ModelResult(
        name=first.model,
        about=first.about,
        seeds=tuple(repetition.seed for repetition in repetitions),
        steps=first.steps,
        teacher=first.teacher,
        compare_to=first.compare_to,
        # Seeds differ in weights and not in size.
        parameters=first.parameters,
        encoder_parameters=first.encoder_parameters,
        characters=Errors(character_errors_SU, characters_U),
        words=Errors(word_errors_SU, words_U),
        # A median: one seed that another program slowed down does not move it.
        real_time_factor=float(np.median(real_time_factors)),
        load_entropy=_mean(load_entropies),
        minutes=float(np.mean(minutes)),
        operations=float(np.mean(operations)),
        whole_operations=_mean(whole_operations),
        audio_hours=float(np.mean(audio_hours)),
    )


def _mean(values: Sequence[float]) -> float | None:
    if not values:
        return None
    return float(np.mean(values))


def read_trainings(run: RunFolder) -> tuple[str, EvaluationSet, list[Training]]:
    """Read the trainings of a run's first evaluation, in the recipe's order, and the recipe's name.

    ConfigError where the run has no evaluation yet, or one that kept no hypotheses.
    """
    recipe = load_run_recipe(run)
    evaluation, results = _read_first_evaluation(run, recipe)
    run_data = read_run_data(run.path)
    stage_data = {stage.name: stage for stage in run_data.stages}
    operations = {stage.name: stage.sum_over_steps("flops_per_s") for stage in run_data.stages}

    evaluated = None
    trainings = []
    for stage in recipe.training_stages():
        if stage.name not in evaluation.models:
            continue
        settings = training_settings(recipe, stage, sparse=True)
        # It is what the repetitions of a model differ in.
        settings.pop("seed")
        rows = read_hypotheses(run.stage(evaluation.name).hypotheses_file(stage.name))
        character_errors, character_lengths = count_all_errors(rows, jiwer.process_characters)
        word_errors, word_lengths = count_all_errors(rows, jiwer.process_words)
        sizes, measured = _read_measures(run, evaluation, results, stage.name)
        if evaluated is None:
            # All models of an evaluation are measured on the same utterances with the same threads.
            evaluated = EvaluationSet(
                split=evaluation.split,
                search=evaluation.search.kind,
                threads=measured["threads"],
                seconds=measured["seconds"],
                sha256=hash_value([[row["key"], row["reference"]] for row in rows]),
                characters=character_lengths,
                words=word_lengths,
            )
        training = Training(
            stage=stage.name,
            model=stage.unseeded_name,
            about=stage.about,
            seed=recipe.seed_of(stage),
            recipe=recipe.name,
            # Without defaults, so that an option which a later version adds does not set its trainings apart.
            settings_sha256=hash_value(settings),
            steps=stage.steps,
            teacher=_teacher(recipe, stage),
            compare_to=stage.compare_to,
            parameters=sizes["parameters"],
            encoder_parameters=sizes["encoder_parameters"],
            real_time_factor=measured["rtf"],
            load_entropy=_load_entropy(stage_data[stage.name]),
            minutes=_training_minutes(stage_data[stage.name], run_data.events),
            operations=operations[stage.name],
            whole_operations=_with_sources(recipe, stage, operations),
            audio_hours=stage_data[stage.name].sum_over_steps("audio_s_per_s") / 3600,
            character_errors=character_errors,
            word_errors=word_errors,
        )
        trainings.append(training)
    assert evaluated is not None
    return recipe.name, evaluated, trainings


def _read_first_evaluation(run: RunFolder, recipe: Recipe) -> tuple[EvaluateStage, dict[str, Any]]:
    """The first evaluation stage of a recipe, and what it measured; ConfigError where the run has none yet."""
    for stage in recipe.stages:
        if not isinstance(stage, EvaluateStage):
            continue
        results = read_evaluation(run.stage(stage.name))
        if results is not None:
            return stage, results
        # Not a later one, which may be of another split or search: a comparison is of one evaluation.
        break
    raise ConfigError(
        f"The run in {run.path} has no evaluation yet, so there is nothing to compare. `chorus status {run.path}` "
        "shows how far it is; run its recipe to the end."
    )


def _read_measures(
    run: RunFolder, evaluation: EvaluateStage, results: dict[str, Any], stage: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an evaluation's file has of a model, and of that what it measured; DataError where numbers are missing."""
    path = run.stage(evaluation.name).evaluation_file
    sizes = results["models"].get(stage, {})
    measured = sizes.get(evaluation.split)
    if not isinstance(measured, dict):
        measured = {}
    for key in ("threads", "seconds", "rtf"):
        if not is_number(measured.get(key)):
            raise _torn(path, f"no {key} of model {stage} on {evaluation.split}")
    for key in ("parameters", "encoder_parameters"):
        if not is_number(sizes.get(key)):
            raise _torn(path, f"no {key} of model {stage}")
    return sizes, measured


def _torn(path: Path, problem: str) -> DataError:
    return DataError(f"{path} has {problem}. Delete it and run the same command as before: it evaluates again.")


def _teacher(recipe: Recipe, stage: AnyTrainingStage) -> str | None:
    """The first teacher of a stage, without its seed; None without one among the recipe's stages."""
    if not isinstance(stage, DistillStage):
        return None
    teacher = stage.named_teachers[0].model
    for other in recipe.training_stages():
        if other.name == teacher:
            return other.unseeded_name
    return None


def _with_sources(recipe: Recipe, stage: AnyTrainingStage, costs: dict[str, float]) -> float | None:
    """The cost of a stage and of all that it learns or starts from; None where something of it is from elsewhere."""
    stages = {other.name: other for other in recipe.training_stages()}
    needed = {stage.name}
    waiting = [stage]
    while waiting:
        current = waiting.pop()
        sources = []
        if isinstance(current, DistillStage):
            sources = [teacher.model for teacher in current.named_teachers]
        elif isinstance(current, PretrainStage) and current.initialize_from:
            sources = [current.initialize_from]
        elif isinstance(current, AdaptStage):
            sources = [current.base]
        for source in sources:
            # A folder: what it took to train its model is not known here.
            if source not in stages:
                return None
            if source not in needed:
                needed.add(source)
                waiting.append(stages[source])
    return sum(costs[name] for name in needed)


def _training_minutes(stage: StageData, events: Sequence[Event]) -> float:
    """How long a stage's steps took; 0 where no step was recorded."""
    goodput = measure_goodput(events, stage.rows, stage.name)
    if goodput is None:
        return 0.0
    # Start, validation and saving depend on the machine more than on the model.
    return (goodput.useful + goodput.data_wait) / 60


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
