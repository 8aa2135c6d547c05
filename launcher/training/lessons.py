"""What the teachers of a stage teach, put together when the stage starts: each teacher, its layers beside those of the
student, the student's helpers, and the units that k-means makes."""

import dataclasses
import logging
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from data.loader import Loader
from data.plan import derive_seed
from launcher.errors import ConfigError
from launcher.recipe import DistillStage, Recipe, TeacherConfig
from launcher.recipe.teachers import (
    TOKEN_TERMS,
    TeacherFacts,
    check_lesson,
    facts_of_stage,
    frame_s,
    hidden_layers,
    read_facts,
    terms_of,
)
from launcher.run_folder import RunFolder, StageFolder
from launcher.training.distillation import Distill, Lesson
from launcher.training.inputs import Inputs
from launcher.training.teachers.opening import open_teacher
from launcher.training.units import k_means, read_units, sample_states, write_units
from model.student import Helper
from model.subsampling import valid_mask

logger = logging.getLogger(__name__)


def open_lessons(
    recipe: Recipe, run: RunFolder, stage: DistillStage, pieces: list[str], device: torch.device
) -> tuple[list[Lesson], dict[str, Helper]]:
    """The teachers of a stage, open, with what they teach, and the helpers that the student needs for it."""
    lessons, helpers = [], {}
    for config in stage.lessons:
        lesson, wanted = _open_lesson(recipe, run, stage, config, pieces, device)
        lessons.append(lesson)
        helpers |= wanted
    return lessons, helpers


def _open_lesson(
    recipe: Recipe, run: RunFolder, stage: DistillStage, config: TeacherConfig, pieces: list[str], device: torch.device
) -> tuple[Lesson, dict[str, Helper]]:
    if config.is_folder:
        facts = read_facts(run.model_folder(config.model), f"The teacher {config.name} of stage {stage.name}")
    else:
        facts = facts_of_stage(recipe, config.model)
    check_lesson(recipe, stage, config, facts)
    terms, teacher = terms_of(stage, config), open_teacher(run, config, facts, pieces, device)
    tokens = [term for term in TOKEN_TERMS if term in terms]
    if tokens and not teacher.same_tokens:
        raise ConfigError(
            f"Stage {stage.name} compares tokens with its teacher {config.model} in distill.{tokens[0]}, but the "
            f"teacher's are not the {len(pieces)} tokens of this run's tokenizer. Train both with one tokenizer, or "
            "list it in teachers with terms among hidden and units."
        )
    if stage.model.decoder is None or not teacher.has_decoder:
        terms -= {"decoder"}
    compared = hidden_layers(stage) if "hidden" in terms else ()
    pairs = tuple(zip(compared, config.layers or compared, strict=True))
    lesson = Lesson(config.name, teacher, config.weight, terms, pairs, frame_s(recipe, stage) / teacher.frame_s)
    return lesson, _add_helpers(lesson, stage, facts)


def _add_helpers(lesson: Lesson, stage: DistillStage, facts: TeacherFacts) -> dict[str, Helper]:
    """The helpers that a lesson needs; the lesson learns their names."""
    helpers = {}
    if "hidden" in lesson.terms and stage.distill.hidden.projection:
        lesson.projections = {mine: f"hidden-{lesson.name}-{mine:02d}" for mine, _ in lesson.pairs}
        helpers |= {name: Helper(layer, facts.width) for layer, name in lesson.projections.items()}
    if "units" in lesson.terms:
        units, last = stage.distill.units, stage.model.encoder.layers - 1
        lesson.unit_helper = f"units-{lesson.name}"
        lesson.unit_layer = facts.layers - 1 if units.teacher_layer is None else units.teacher_layer
        helpers[lesson.unit_helper] = Helper(last if units.layer is None else units.layer, units.count)
    return helpers


def wants_source(task: Distill) -> bool:
    """Whether a teacher, or a term, needs more of a micro-batch than its augmented features."""
    masked = task.config.units.masked_only and any("units" in lesson.terms for lesson in task.lessons)
    return masked or any(lesson.teacher.needs_source for lesson in task.lessons)


def make_units(task: Distill, folder: StageFolder, train: Inputs, seed: int) -> None:
    """Give every lesson that needs them its units: those in the stage's folder, else new ones. Collective."""
    for lesson in task.lessons:
        if "units" not in lesson.terms:
            continue
        path, config = folder.units_file(lesson.name), task.config.units
        if dist.get_rank() == 0 and not path.is_file():
            who = f"The teacher {lesson.name} of stage {folder.name}"
            purpose = derive_seed(seed, "units", folder.name, lesson.name)
            states_ND = sample_states(_states(task, lesson, train), config, purpose, who)
            write_units(path, k_means(states_ND, config.count, config.iterations, purpose))
            logger.info("%s: %d units from %d frames", who, config.count, len(states_ND))
        found: list[Tensor | None] = [None]
        if dist.get_rank() == 0:
            found = [read_units(path, config.count)]
        dist.broadcast_object_list(found, 0)
        assert found[0] is not None
        lesson.centroids_CD = found[0].to(train.device)


@torch.no_grad()
def _states(task: Distill, lesson: Lesson, train: Inputs) -> Iterator[Tensor]:
    """The teacher's states [N, D] at the valid frames of every lane in the first steps."""
    loader, config = train.loader, task.config.units
    every = Loader(loader.plan, loader.reader, loader.tokenizer, range(loader.plan.batches.lanes), loader.workers)
    inputs = dataclasses.replace(train, loader=every)
    for batches in inputs.steps(0, config.steps):
        for batch in batches:
            output = task.hear(lesson, inputs.micro_batch(batch))
            states_BSD = output.layers[lesson.unit_layer]
            yield states_BSD[valid_mask(output.lengths_B, states_BSD.shape[1])]
