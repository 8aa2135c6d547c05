"""Puts a training stage together on each process, and takes the finished model out of it."""

import torch
import torch.distributed as dist

from data.plan import derive_seed
from data.tokenizer import Tokenizer
from launcher.errors import ConfigError
from launcher.finished_model import write_finished_model
from launcher.lineage import used_artifacts
from launcher.recipe import DistillStage, PretrainStage, Recipe
from launcher.run_folder import RunFolder
from launcher.stopping import StopRequest
from launcher.tracking import Tracker, read_metrics
from launcher.training import parallel
from launcher.training.checkpoint import agreed_checkpoint, open_checkpoint
from launcher.training.collapse import CollapseDetector
from launcher.training.distillation import Distill, Lesson
from launcher.training.heartbeat import Heartbeat
from launcher.training.inputs import NO_AUGMENTATION, open_inputs
from launcher.training.lessons import make_units, open_lessons, wants_source
from launcher.training.spikes import SpikeDetector
from launcher.training.tasks import Pretrain
from launcher.training.teachers.opening import recognizer_of
from launcher.training.trainer import Trainer
from model.recognizer import Recognizer
from model.student import Student
from model.upcycle import initialize_from_teacher

TrainingStage = PretrainStage | DistillStage


def build_trainer(
    recipe: Recipe,
    run: RunFolder,
    stage: TrainingStage,
    heartbeat: Heartbeat,
    device: torch.device,
    stop: StopRequest,
) -> Trainer:
    """This process's trainer, resumed from the newest intact checkpoint when there is one. Collective."""
    rank, world = dist.get_rank(), dist.get_world_size()
    folder = run.stage(stage.name)
    tokenizer = Tokenizer.load(run.tokenizer)
    batches = recipe.batches_of(stage)
    lanes = batches.lanes_of(rank, world)
    factor = stage.model.encoder.subsampling.factor
    train = open_inputs(recipe, run, "train", batches, recipe.augment_of(stage), lanes, device, factor)
    validation = None
    if recipe.has_split(run, "dev"):
        validation = open_inputs(recipe, run, "dev", batches, NO_AUGMENTATION, lanes, device, factor)
    recognizer, task = _model_and_task(recipe, run, stage, tokenizer, device)
    if isinstance(task, Distill):
        train.keeps_source = wants_source(task)
        make_units(task, folder, train, recipe.seed)
    parallel.spread_experts(recognizer, recipe.expert_parallel_of(stage), rank)
    engine = parallel.build_engine(
        recognizer.to(device),
        stage.optimizer,
        recipe.deepspeed_of(stage),
        accumulation=len(lanes),
        precision=recipe.cluster.precision,
    )
    saved = agreed_checkpoint(folder)
    trainer = Trainer(
        stage, folder, recipe.seed, engine, task, train, validation, tokenizer, heartbeat, stop, tracker=None
    )
    if saved:
        trainer.resume(saved)
    if rank == 0:
        trainer.tracker = Tracker(
            folder.path,
            recipe.tracking,
            run_name=recipe.name,
            recipe=recipe.model_dump(mode="json"),
            resume_step=trainer.step,
        )
        trainer.tracker.tell_restarts(run.events(), stage.name)
        trainer.tracker.artifacts(lambda: used_artifacts(recipe, run, stage.name), used=True)
        # What the loss and the routing usually are, as far as they were measured before.
        rows = list(read_metrics(folder.metrics_file))
        trainer.spikes = SpikeDetector(row["loss"] for row in rows if row.get("loss") is not None)
        trainer.collapses = CollapseDetector(rows)
    return trainer


def _model_and_task(
    recipe: Recipe, run: RunFolder, stage: TrainingStage, tokenizer: Tokenizer, device: torch.device
) -> tuple[Recognizer, Pretrain | Distill]:
    # Every process draws the same whole model, so that experts can be spread by slicing.
    weights_seed = derive_seed(recipe.seed, "weights", stage.name)
    torch.manual_seed(weights_seed)
    recognizer = Recognizer(stage.model, recipe.features.mel_bins, tokenizer.vocabulary_size)
    pretrain = Pretrain(stage.objective, stage.model.encoder)
    if isinstance(stage, PretrainStage):
        return recognizer, pretrain
    lessons, helpers = open_lessons(recipe, run, stage, tokenizer.pieces, device)
    if helpers or any("sequence" in lesson.terms for lesson in lessons):
        with torch.random.fork_rng(devices=[]):  # the same weights, and what is drawn later does not depend on helpers
            torch.manual_seed(weights_seed)
            recognizer = Student(stage.model, recipe.features.mel_bins, tokenizer.vocabulary_size, helpers)
    if stage.initialize_from_teacher:
        _initialize(recognizer, stage, lessons[0])
    bf16 = recipe.cluster.precision == "bf16"
    return recognizer, Distill(pretrain, stage.distill, lessons, helpers, autocast=bf16)


def _initialize(recognizer: Recognizer, stage: DistillStage, lesson: Lesson) -> None:
    """Start from the first teacher; ConfigError where it is not of the same shape."""
    teacher = recognizer_of(lesson.teacher)
    model = stage.lessons[0].model
    if teacher is None:
        raise ConfigError(
            f"Stage {stage.name} cannot start from teacher {model}, which is not a model of Chorus. Put one that is "
            "first among its teachers, or set initialize_from_teacher to false."
        )
    if teacher.vocabulary_size != recognizer.vocabulary_size:
        raise ConfigError(
            f"Stage {stage.name} cannot start from teacher {model}: it knows {teacher.vocabulary_size} tokens and this "
            f"run's tokenizer {recognizer.vocabulary_size}. Train both with one tokenizer, or set "
            "initialize_from_teacher to false."
        )
    try:
        initialize_from_teacher(recognizer, teacher)
    except ValueError as error:
        raise ConfigError(f"Stage {stage.name} cannot start from teacher {model}: {error}.") from None


def write_model(recipe: Recipe, run: RunFolder, stage: TrainingStage) -> None:
    """Make the finished model of a stage from its newest intact checkpoint."""
    folder = run.stage(stage.name)
    write_finished_model(folder.model, run, stage.model, recipe.features, open_checkpoint(folder).weights())
