"""What the teachers of a stage teach, put together when the stage starts: each teacher, its layers beside those of the
student, the student's helpers, and the units that k-means makes."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from data.loader import Loader, SidecarSource
from data.sampler import derive_seed
from data.sidecars import open_sidecars
from launcher.errors import ConfigError
from launcher.recipe import DistillStage, TeacherConfig
from launcher.recipe.teachers import (
    TOKEN_TERMS,
    TeacherSpec,
    check_teacher,
    compared_layers,
    frame_s,
    terms_of,
    units_layer,
)
from launcher.run_folder import StageFolder
from launcher.stages.context import StageContext
from launcher.training.distillation.cluster_targets import k_means, read_units, sample_states, write_units
from launcher.training.distillation.loss import DistillationLoss, TeacherTerms
from launcher.training.inputs import Inputs
from launcher.training.teachers.cache_match import CacheChoice, cache_event, choose_caches, describe_choice, spec_of
from launcher.training.teachers.cached import CachedTeacher
from launcher.training.teachers.load import load_teacher
from launcher.training.teachers.teacher import Teacher
from model.layers.subsampling import valid_mask
from model.student import AuxiliaryHead

logger = logging.getLogger(__name__)


def load_teachers(
    context: StageContext[DistillStage],
    pieces: list[str],
    device: torch.device,
    caches: Mapping[str, CacheChoice] | None = None,
) -> tuple[list[TeacherTerms], dict[str, AuxiliaryHead]]:
    """The teachers of a stage, open, with what they teach, and the helpers that the student needs for it. Those whose
    outputs are in a cache are not opened."""
    named_teachers, helpers = [], {}
    for config in context.stage.named_teachers:
        cache = (caches or {}).get(config.name, CacheChoice())
        lesson, wanted = _open_lesson(context, config, pieces, device, cache)
        named_teachers.append(lesson)
        helpers |= wanted
    return named_teachers, helpers


def _open_lesson(
    context: StageContext[DistillStage],
    config: TeacherConfig,
    pieces: list[str],
    device: torch.device,
    cache: CacheChoice,
) -> tuple[TeacherTerms, dict[str, AuxiliaryHead]]:
    recipe, run, stage = context.recipe, context.run, context.stage
    spec = spec_of(context, config)
    check_teacher(recipe, stage, config, spec)
    terms = terms_of(stage, config)
    if cache.folder and cache.description:
        model = run.model_folder(config.model)
        teacher = CachedTeacher(config.name, cache.folder, cache.description, model, spec, len(pieces), device)
    else:
        teacher = load_teacher(run, config, spec, pieces, device)
    check_tokens(stage, config, teacher, len(pieces))
    if stage.model.decoder is None or not teacher.has_decoder:
        terms -= {"decoder"}
    pairs = compared_layers(stage, config)
    lesson = TeacherTerms(config.name, teacher, config.weight, terms, pairs, frame_s(recipe, stage) / teacher.frame_s)
    return lesson, _add_helpers(lesson, stage, spec)


def check_tokens(stage: DistillStage, config: TeacherConfig, teacher: Teacher, num_pieces: int) -> None:
    """Refuse (ConfigError) a teacher whose tokens are others, where tokens are compared."""
    tokens = [term for term in TOKEN_TERMS if term in terms_of(stage, config)]
    if tokens and not teacher.same_tokens:
        raise ConfigError(
            f"Stage {stage.name} compares tokens with its teacher {config.model} in distill.{tokens[0]}, but the "
            f"teacher's are not the {num_pieces} tokens of this run's tokenizer. Train both with one tokenizer, or "
            "list it in teachers with terms among hidden and units."
        )


def _add_helpers(lesson: TeacherTerms, stage: DistillStage, spec: TeacherSpec) -> dict[str, AuxiliaryHead]:
    """The helpers that a lesson needs; the lesson learns their names."""
    helpers = {}
    if "hidden" in lesson.terms and stage.distill.hidden.projection:
        lesson.projections = {mine: f"hidden-{lesson.name}-{mine:02d}" for mine, _ in lesson.pairs}
        helpers |= {name: AuxiliaryHead(layer, spec.width) for layer, name in lesson.projections.items()}
    if "units" in lesson.terms:
        units, last = stage.distill.units, stage.model.encoder.layers - 1
        lesson.unit_helper = f"units-{lesson.name}"
        lesson.unit_layer = units_layer(stage, spec)
        helpers[lesson.unit_helper] = AuxiliaryHead(last if units.layer is None else units.layer, units.count)
    return helpers


def agree_on_caches(context: StageContext[DistillStage]) -> dict[str, CacheChoice]:
    """The caches that all processes read, by the names of teachers, as the first one chooses; it says so in its log and
    among the run's events. Collective."""
    found: list[dict[str, CacheChoice]] = [{}]
    if dist.get_rank() == 0:
        found = [choose_caches(context)]
        for teacher, choice in found[0].items():
            if said := describe_choice(teacher, choice):
                logger.info("%s: %s", context.name, said)
                context.run.append_event("teacher_cache", stage=context.name, **cache_event(teacher, choice))
    dist.broadcast_object_list(found, 0)
    return found[0]


def read_caches(task: DistillationLoss, train: Inputs, steps: int) -> None:
    """Have the loader read stored outputs with the audio, at the steps of the stage where something of theirs
    counts. DataError when they are not whole."""
    for lesson in task.named_teachers:
        if isinstance(lesson.teacher, CachedTeacher):
            reader = open_sidecars(lesson.teacher.folder, train.loader.reader.index)
            terms = lesson.terms
            train.loader.sidecars[lesson.name] = SidecarSource(
                reader, lambda step, terms=terms: bool(terms & task.config.factors(step / steps).keys())
            )


def needs_source(task: DistillationLoss) -> bool:
    """Whether a teacher, or a term, needs more of a micro-batch than its augmented features."""
    masked = task.config.units.masked_only and any("units" in lesson.terms for lesson in task.named_teachers)
    return masked or any(lesson.teacher.needs_source for lesson in task.named_teachers)


def make_cluster_targets(task: DistillationLoss, folder: StageFolder, train: Inputs, seed: int) -> None:
    """Give every lesson that needs them its units: those in the stage's folder, else new ones. Collective."""
    for lesson in task.named_teachers:
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
def _states(task: DistillationLoss, lesson: TeacherTerms, train: Inputs) -> Iterator[Tensor]:
    """The teacher's states [N, D] at the valid frames of every lane in the first steps."""
    loader, config = train.loader, task.config.units
    every = Loader(
        loader.sampler,
        loader.reader,
        loader.tokenizer,
        range(loader.sampler.batches.lanes),
        loader.workers,
        sidecars={name: SidecarSource(one.reader) for name, one in loader.sidecars.items() if name == lesson.name},
    )
    inputs = dataclasses.replace(train, loader=every)
    for batches in inputs.steps(0, config.steps):
        for batch in batches:
            output = task.run_teacher(lesson, inputs.micro_batch(batch))
            states_BSD = output.layers[lesson.unit_layer]
            yield states_BSD[valid_mask(output.lengths_B, states_BSD.shape[1])]
