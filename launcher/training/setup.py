"""Puts a training stage together on each process, and takes the finished model out of it."""

import torch
import torch.distributed as dist

from data.sampler import derive_seed
from data.tokenizer import Tokenizer
from launcher.inference.finished_model import write_finished_model
from launcher.processes.heartbeat import Heartbeat
from launcher.processes.stop_request import StopRequest
from launcher.recipe import AnyTrainingStage, PretrainStage, Recipe, SelfSupervisedStage
from launcher.run_folder import RunFolder
from launcher.stages.lineage import used_artifacts
from launcher.tracking import Tracker, read_metrics
from launcher.training import parallel
from launcher.training.checkpoint import agreed_checkpoint, open_checkpoint
from launcher.training.distillation.loss import DistillationLoss
from launcher.training.distillation.setup import (
    agree_on_caches,
    load_teachers,
    make_cluster_targets,
    read_caches,
    wants_source,
)
from launcher.training.expert_parallel import spread_experts
from launcher.training.health.loss_spikes import SpikeDetector
from launcher.training.health.routing_collapse import CollapseDetector
from launcher.training.initialization import initialize_from_encoder, initialize_from_first_teacher
from launcher.training.inputs import NO_AUGMENTATION, open_inputs
from launcher.training.masked_prediction_loss import MaskedPredictionLoss
from launcher.training.recognition_loss import RecognitionLoss
from launcher.training.trainer import Task, Trainer
from launcher.training.validation import ErrorRate, MaskedAccuracy, Validator
from model.masked_prediction import MaskedPredictor, Model
from model.recognizer import Recognizer
from model.student import Student


def build_trainer(
    recipe: Recipe,
    run: RunFolder,
    stage: AnyTrainingStage,
    heartbeat: Heartbeat,
    device: torch.device,
    stop: StopRequest,
) -> Trainer:
    """This process's trainer, resumed from the newest intact checkpoint when there is one. Collective."""
    rank, world = dist.get_rank(), dist.get_world_size()
    folder = run.stage(stage.name)
    batches = recipe.batches_of(stage)
    lanes = batches.lanes_of(rank, world)
    factor = stage.model.encoder.subsampling.factor
    masking = stage.masking if isinstance(stage, SelfSupervisedStage) else None
    seed = recipe.seed_of(stage)
    train = open_inputs(recipe, run, "train", batches, recipe.augment_of(stage), lanes, device, factor, masking, seed)
    validation = None
    if recipe.has_split(run, "dev"):
        validation = open_inputs(recipe, run, "dev", batches, NO_AUGMENTATION, lanes, device, factor, masking, seed)
    model, task, judge = _what_learns(recipe, run, stage, device)
    if isinstance(task, DistillationLoss):
        train.keeps_source = wants_source(task)
        read_caches(task, train, stage.steps)
        make_cluster_targets(task, folder, train, seed)
    spread_experts(model, recipe.expert_parallel_of(stage), rank)
    engine = parallel.build_engine(
        model.to(device),
        stage.optimizer,
        recipe.deepspeed_of(stage),
        accumulation=len(lanes),
        precision=recipe.cluster.precision,
    )
    saved = agreed_checkpoint(folder)
    trainer = Trainer(stage, folder, seed, engine, task, train, validation, judge, heartbeat, stop, tracker=None)
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
        trainer.tracker.alert_restarts(run.events(), stage.name)
        trainer.tracker.artifacts(lambda: used_artifacts(recipe, run, stage.name), used=True)
        # What the loss and the routing usually are, as far as they were measured before.
        rows = list(read_metrics(folder.metrics_file))
        trainer.spikes = SpikeDetector(row["loss"] for row in rows if row.get("loss") is not None)
        trainer.collapses = CollapseDetector(rows)
    return trainer


def _what_learns(
    recipe: Recipe, run: RunFolder, stage: AnyTrainingStage, device: torch.device
) -> tuple[Model, Task, Validator]:
    """The model of a stage, its task, and what tells how good it is."""
    # Every process draws the same whole model, so that experts can be spread by slicing.
    weights_seed = derive_seed(recipe.seed_of(stage), "weights", stage.name)
    torch.manual_seed(weights_seed)
    if isinstance(stage, SelfSupervisedStage):
        predictor = MaskedPredictor(stage.model, recipe.features.mel_bins)
        return (
            predictor,
            MaskedPredictionLoss(stage.objective, stage.model.encoder),
            MaskedAccuracy(stage.model.quantizer),
        )
    tokenizer = Tokenizer.load(run.tokenizer)
    recognizer = Recognizer(stage.model, recipe.features.mel_bins, tokenizer.vocabulary_size)
    pretrain, judge = RecognitionLoss(stage.objective, stage.model.encoder), ErrorRate(tokenizer)
    if isinstance(stage, PretrainStage):
        if stage.initialize_from:
            initialize_from_encoder(recognizer, stage, recipe, run)
        return recognizer, pretrain, judge
    caches = agree_on_caches(recipe, run, stage)
    named_teachers, helpers = load_teachers(recipe, run, stage, tokenizer.pieces, device, caches)
    if helpers or any("sequence" in lesson.terms for lesson in named_teachers):
        with torch.random.fork_rng(devices=[]):  # the same weights, and what is drawn later does not depend on helpers
            torch.manual_seed(weights_seed)
            recognizer = Student(stage.model, recipe.features.mel_bins, tokenizer.vocabulary_size, helpers)
    if stage.initialize_from_teacher:
        initialize_from_first_teacher(recognizer, stage, named_teachers[0])
    bf16 = recipe.cluster.precision == "bf16"
    return recognizer, DistillationLoss(pretrain, stage.distill, named_teachers, helpers, autocast=bf16), judge


def write_model(recipe: Recipe, run: RunFolder, stage: AnyTrainingStage) -> None:
    """Make the finished model of a stage from its newest intact checkpoint."""
    folder = run.stage(stage.name)
    write_finished_model(folder.model, run, stage.model, recipe.features, open_checkpoint(folder).weights())
