"""What the teachers of a stage teach, put together when the stage starts: each teacher, its layers beside those of the
student, the student's auxiliary heads, and the units that k-means makes."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data.loader import Loader, SidecarSource
from data.seeds import derive_seed
from data.shards.index import ShardIndex
from data.shards.sidecars import open_sidecars
from launcher.errors import ConfigError
from launcher.processes.heartbeat import Heartbeat
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
from launcher.training.collectives import broadcast_json, broadcast_tensor
from launcher.training.distillation.cluster_targets import (
    StateSample,
    k_means,
    read_units,
    sample_file,
    write_units,
)
from launcher.training.distillation.loss import DistillationLoss
from launcher.training.distillation.terms import TeacherTerms
from launcher.training.inputs import Inputs
from launcher.training.teachers.cache_match import CacheChoice, cache_event, choose_caches, describe_choice, spec_of
from launcher.training.teachers.cached import CachedTeacher
from launcher.training.teachers.load import load_teacher
from launcher.training.teachers.teacher import Teacher, run_teacher
from model.layers.subsampling import valid_mask
from model.student import AuxiliaryHead

logger = logging.getLogger(__name__)


def load_teachers(
    context: StageContext[DistillStage],
    pieces: list[str],
    device: torch.device,
    caches: Mapping[str, CacheChoice] | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> tuple[list[TeacherTerms], dict[str, AuxiliaryHead]]:
    """The teachers of a stage with what they teach, and the auxiliary heads that the student needs for it.

    `pieces` are the student's tokens. A teacher whose outputs are in one of `caches`, by its name, is not loaded.
    `on_progress` is called before each teacher.
    """
    stage = context.stage
    teachers: list[TeacherTerms] = []
    auxiliary_heads: dict[str, AuxiliaryHead] = {}
    for config in stage.named_teachers:
        on_progress()
        spec = spec_of(context, config)
        check_teacher(context.recipe, stage, config, spec)

        cache = CacheChoice()
        if caches is not None:
            cache = caches.get(config.name, cache)
        if cache.folder and cache.description:
            teacher = CachedTeacher(
                name=config.name,
                folder=cache.folder,
                description=cache.description,
                model=context.run.model_folder(config.model),
                spec=spec,
                vocabulary_size=len(pieces),
                device=device,
            )
        else:
            teacher = load_teacher(context.run, config, spec, pieces, device)
        check_tokens(stage, config, teacher, len(pieces))

        terms = terms_of(stage, config)
        # The term is active by default, and is dropped where one of the two has no decoder.
        if stage.model.decoder is None or not teacher.has_decoder:
            terms -= {"decoder"}
        teacher_terms = TeacherTerms(
            name=config.name,
            teacher=teacher,
            weight=config.weight,
            terms=terms,
            layer_pairs=compared_layers(stage, config),
            ratio=frame_s(context.recipe, stage) / teacher.frame_s,
        )
        auxiliary_heads |= _add_auxiliary_heads(teacher_terms, stage, spec)
        teachers.append(teacher_terms)
    return teachers, auxiliary_heads


def _add_auxiliary_heads(
    teacher_terms: TeacherTerms, stage: DistillStage, spec: TeacherSpec
) -> dict[str, AuxiliaryHead]:
    """The auxiliary heads that a teacher's terms need, by names that `teacher_terms` gets to know."""
    heads: dict[str, AuxiliaryHead] = {}
    if "hidden" in teacher_terms.terms and stage.distill.hidden.projection:
        for student_layer, _ in teacher_terms.layer_pairs:
            name = f"hidden-{teacher_terms.name}-{student_layer:02d}"
            teacher_terms.projections[student_layer] = name
            heads[name] = AuxiliaryHead(student_layer, spec.width)
    if "units" in teacher_terms.terms:
        units = stage.distill.units
        student_layer = units.layer
        if student_layer is None:
            student_layer = stage.model.encoder.layers - 1
        teacher_terms.units_layer = units_layer(stage, spec)
        teacher_terms.units_head = f"units-{teacher_terms.name}"
        heads[teacher_terms.units_head] = AuxiliaryHead(student_layer, units.count)
    return heads


def check_tokens(
    stage: DistillStage,
    config: TeacherConfig,
    teacher: Teacher,
    num_pieces: int,
) -> None:
    """Refuse (ConfigError) a teacher whose tokens are others, where tokens are compared."""
    terms = terms_of(stage, config)
    token_terms = [term for term in TOKEN_TERMS if term in terms]
    if token_terms and not teacher.same_tokens:
        raise ConfigError(
            f"Stage {stage.name} compares tokens with its teacher {config.model} in distill.{token_terms[0]}, but the "
            f"teacher's are not the {num_pieces} tokens of this run's tokenizer. Train both with one tokenizer, or "
            "list it in teachers with terms among hidden and units."
        )


def agree_on_caches(context: StageContext[DistillStage]) -> dict[str, CacheChoice]:
    """The caches that all processes read, by the names of teachers, as the first process chooses. Collective.

    The first process logs its choices, and leaves them among the run's events.
    """
    # One process looks: on a shared disk another might see a cache that has just been finished.
    shared: dict[str, Any] = {}
    if dist.get_rank() == 0:
        choices = choose_caches(context)
        for teacher, choice in choices.items():
            sentence = describe_choice(teacher, choice)
            if sentence:
                logger.info("%s: %s", context.name, sentence)
                context.run.append_event("teacher_cache", stage=context.name, **cache_event(teacher, choice))
        shared = {teacher: choice.record() for teacher, choice in choices.items()}
    return {teacher: CacheChoice.of_record(record) for teacher, record in broadcast_json(shared).items()}


def read_caches(stage_loss: DistillationLoss, train: Inputs, steps: int) -> None:
    """Have the loader read stored outputs with the audio, at the steps of the stage where one of their terms counts.
    DataError when they are not whole."""
    for teacher_terms in stage_loss.teachers:
        teacher = teacher_terms.teacher
        if not isinstance(teacher, CachedTeacher):
            continue

        # `terms` is bound here: when the loader asks, the loop's variable is the last teacher.
        def needed_at(step: int, terms: frozenset[str] = teacher_terms.terms) -> bool:
            factors = stage_loss.config.factors(step / steps)
            return bool(terms & factors.keys())

        index = train.loader.reader.index
        # A mixture of several corpora has no caches.
        assert isinstance(index, ShardIndex)
        reader = open_sidecars(teacher.folder, index)
        reader.check = teacher.check_stored
        train.loader.sidecars[teacher_terms.name] = SidecarSource(reader, needed_at)


def needs_source(stage_loss: DistillationLoss) -> bool:
    """Whether a teacher, or a term, needs more of a micro-batch than its augmented features."""
    for teacher_terms in stage_loss.teachers:
        if teacher_terms.teacher.needs_source:
            return True
        if "units" in teacher_terms.terms and stage_loss.config.units.masked_only:
            return True
    return False


def make_cluster_targets(
    stage_loss: DistillationLoss,
    folder: StageFolder,
    train: Inputs,
    seed: int,
    heartbeat: Heartbeat,
) -> None:
    """Give the terms of every teacher that needs them its units: those in the stage's folder, else new ones.
    Collective."""
    for teacher_terms in stage_loss.teachers:
        if "units" not in teacher_terms.terms:
            continue
        centroids_CD = None
        if dist.get_rank() == 0:
            path = folder.units_file(teacher_terms.name)
            if not path.is_file():
                units_seed = derive_seed(seed, "units", folder.name, teacher_terms.name)
                _write_new_units(path, stage_loss, teacher_terms, train, units_seed, heartbeat)
            # New ones too are read from the file: a stage that resumes gets the same.
            centroids_CD = read_units(path, stage_loss.config.units.count)
        teacher_terms.centroids_CD = broadcast_tensor(centroids_CD).to(train.device)


def _write_new_units(
    path: Path,
    stage_loss: DistillationLoss,
    teacher_terms: TeacherTerms,
    train: Inputs,
    seed: int,
    heartbeat: Heartbeat,
) -> None:
    """Make the units of a teacher, which may take long: reports every batch, and keeps what is drawn on the disk."""
    config = stage_loss.config.units
    teacher = f"The teacher {teacher_terms.name} of stage {path.parent.parent.name}"
    heartbeat.beat(heartbeat.step, "units")
    sample = StateSample(config, seed, sample_file(path))
    _draw_states(sample, stage_loss, teacher_terms, train, heartbeat)
    states_ND = sample.states(teacher)
    centroids_CD = k_means(states_ND, config.count, config.iterations, seed, heartbeat.tick)
    write_units(path, centroids_CD)
    sample_file(path).unlink(missing_ok=True)
    logger.info("%s: %d units from %d frames", teacher, config.count, len(states_ND))
    heartbeat.beat(heartbeat.step, "start")


@torch.no_grad()
def _draw_states(
    sample: StateSample,
    stage_loss: DistillationLoss,
    teacher_terms: TeacherTerms,
    train: Inputs,
    heartbeat: Heartbeat,
) -> None:
    """Draw from the teacher's states at the valid frames of every lane, in those of the first steps that are not in
    the sample."""
    # All lanes in this process, so that the units do not depend on the number of processes.
    lanes = range(train.loader.sampler.batches.lanes)
    # The stored outputs of this teacher are read at these steps even where none of its terms counts yet.
    sidecars: dict[str, SidecarSource] = {}
    if teacher_terms.name in train.loader.sidecars:
        stored = train.loader.sidecars[teacher_terms.name]
        sidecars[teacher_terms.name] = SidecarSource(stored.reader)
    loader = Loader(
        train.loader.sampler,
        train.loader.reader,
        train.loader.tokenizer,
        lanes,
        train.loader.workers,
        connections=train.loader.connections,
        max_broken_ratio=train.loader.max_broken_ratio,
        augmentation=train.loader.augmentation,
        sidecars=sidecars,
        on_wait=heartbeat.tick,
    )
    inputs = dataclasses.replace(train, loader=loader)
    for batches in inputs.steps(sample.next_step, stage_loss.config.units.steps):
        for batch in batches:
            heartbeat.tick()
            feature_batch = inputs.micro_batch(batch)
            output = run_teacher(teacher_terms.teacher, feature_batch, stage_loss.autocast)
            states_BSD = output.layers[teacher_terms.units_layer]
            valid_BS = valid_mask(output.lengths_B, states_BSD.shape[1])
            sample.add(batch.step, batch.lane, states_BSD[valid_BS])
        sample.close_step(batches[0].step)
