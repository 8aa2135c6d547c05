"""Puts a training stage together on each process, and takes the finished model out of it."""

import logging
from dataclasses import asdict

import torch
import torch.distributed as dist

from data.seeds import derive_seed
from launcher.inference.finished_model import write_finished_model
from launcher.planning.operations import masked_operations_per_second, operations_per_second
from launcher.processes.heartbeat import Heartbeat
from launcher.processes.start_profile import start_profile
from launcher.processes.stop_request import StopRequest
from launcher.recipe import AdaptStage, AnyTrainingStage, DistillStage, PretrainStage, SelfSupervisedStage
from launcher.stages.context import StageContext
from launcher.stages.lineage import used_artifacts
from launcher.tracking import Tracker
from launcher.training import parallel
from launcher.training.adaptation import KeepCheck, build_adapted, write_adapted_model
from launcher.training.checkpoint import agreed_checkpoint, averaged_weights
from launcher.training.distillation.loss import DistillationLoss
from launcher.training.distillation.setup import (
    agree_on_caches,
    load_teachers,
    make_cluster_targets,
    needs_source,
    read_caches,
)
from launcher.training.expert_parallel import spread_experts
from launcher.training.freezing import freeze_stage
from launcher.training.front_end import read_tokenizer
from launcher.training.health.nonfinite_steps import NonfiniteSteps
from launcher.training.initialization import Start, initialize_from_first_teacher, initialize_from_model
from launcher.training.inputs import open_inputs
from launcher.training.masked_prediction_loss import MaskedPredictionLoss
from launcher.training.memory.shortage import MemoryLimit
from launcher.training.metrics import MetricAccumulator
from launcher.training.recognition_loss import RecognitionLoss
from launcher.training.running_average import RunningAverage
from launcher.training.teachers.chorus import RecognizerTeacher
from launcher.training.trainer import StageLoss, Trainer
from launcher.training.training_log import TrainingLog
from launcher.training.training_state import check_tokenizer, restore_state
from launcher.training.validation import ErrorRateValidator, MaskedAccuracyValidator, Validator
from model.masked_prediction import MaskedPredictor, Model
from model.recognizer import Recognizer
from model.student import Student

logger = logging.getLogger(__name__)


def build_trainer(
    context: StageContext[AnyTrainingStage], heartbeat: Heartbeat, device: torch.device, stop: StopRequest
) -> Trainer:
    """This process's trainer, resumed from the newest intact checkpoint when there is one. Collective.

    Each part may take long with a large corpus, model or checkpoint, so each is reported.
    """
    rank = dist.get_rank()
    lanes = context.batches.lanes_of(rank, dist.get_world_size())
    inputs = open_inputs(context, "train", lanes, device, context.augment)
    heartbeat.tick()
    validation_inputs = None
    if context.has_split("dev"):
        validation_inputs = open_inputs(context, "dev", lanes, device)
        heartbeat.tick()
    start_profile.mark("plan of the data")
    keep = _open_keep(context, lanes, device)
    heartbeat.tick()
    model, stage_loss, validator = _build_model_and_loss(context, device, heartbeat)
    heartbeat.tick()
    start_profile.mark("model and loss")
    if isinstance(stage_loss, DistillationLoss):
        inputs.keeps_source = needs_source(stage_loss)
        # In this order: units are clusters of a teacher's states, which may come from its cache.
        read_caches(stage_loss, inputs, context.stage.steps)
        make_cluster_targets(stage_loss, context.folder, inputs, context.seed, heartbeat)

    flops_per_audio_s = _training_flops_per_audio_s(context, model, stage_loss)
    spread_experts(model, context.expert_parallel, rank)
    # After the experts are spread, whose parameters are new ones.
    frozen = freeze_stage(model, context.stage)
    heartbeat.tick()
    engine = parallel.build_engine(
        model.to(device),
        context.stage.optimizer,
        context.deepspeed_file,
        accumulation=len(lanes),
        precision=context.recipe.cluster.precision,
    )
    heartbeat.tick()
    start_profile.mark("engine")

    average = None
    if context.stage.average is not None and context.stage.average.kind == "running":
        average = RunningAverage(engine, context.stage.average.decay)
    step = 0
    accumulator = MetricAccumulator()
    nonfinite = NonfiniteSteps()
    saved = agreed_checkpoint(context.folder, on_progress=heartbeat.tick)
    if saved:
        check_tokenizer(saved, inputs.loader.tokenizer)
        step = saved.step
        accumulator, nonfinite = restore_state(engine, saved, heartbeat.tick, average)
        if keep is not None:
            keep.base_cer = saved.trainer["keep"]["base_cer"]
        logger.info("resumed from %s: weights, moments, step %d", saved.folder, step)
    if frozen.parameters and rank == 0:
        logger.info("%s", frozen.describe())
        if not saved:
            context.run.append_event("frozen", stage=context.name, **asdict(frozen))
    tracker = _open_tracker(context, resume_step=step) if rank == 0 else None
    heartbeat.tick()
    start_profile.mark("checkpoint and tracking")
    return Trainer(
        context=context,
        engine=engine,
        stage_loss=stage_loss,
        inputs=inputs,
        validation_inputs=validation_inputs,
        validator=validator,
        log=TrainingLog(context, tracker),
        heartbeat=heartbeat,
        stop=stop,
        flops_per_audio_s=flops_per_audio_s,
        memory=MemoryLimit(context, inputs.sampler, device, can_redo=parallel.can_discard_gradients(engine)),
        average=average,
        keep=keep,
        step=step,
        accumulator=accumulator,
        nonfinite=nonfinite,
    )


def _open_keep(
    context: StageContext[AnyTrainingStage], lanes: tuple[int, ...], device: torch.device
) -> KeepCheck | None:
    """The speech that an adaptation is not to forget; None where it names none."""
    stage = context.stage
    if not isinstance(stage, AdaptStage) or stage.adapt.keep_split is None:
        return None
    split = stage.adapt.keep_split
    return KeepCheck(split, open_inputs(context, split, lanes, device), stage.adapt.max_degradation)


def _open_tracker(context: StageContext[AnyTrainingStage], resume_step: int) -> Tracker:
    """The tracker of the first process; rows of steps after `resume_step` are cut off, they are made again."""
    tracker = Tracker(
        context.folder.path,
        context.recipe.tracking,
        run_name=context.recipe.name,
        recipe=context.recipe.model_dump(mode="json"),
        resume_step=resume_step,
    )
    tracker.alert_restarts(context.run.events(), context.name)
    tracker.artifacts(lambda: used_artifacts(context), used=True)
    return tracker


def _build_model_and_loss(
    context: StageContext[AnyTrainingStage], device: torch.device, heartbeat: Heartbeat
) -> tuple[Model, StageLoss, Validator]:
    """The whole model of a stage, what it is trained on, and what validates it."""
    stage = context.stage
    mel_bins = context.recipe.features.mel_bins
    # Every process draws the same whole model, so that experts can be spread by slicing.
    weights_seed = derive_seed(context.seed, "weights", stage.name)
    torch.manual_seed(weights_seed)

    if isinstance(stage, SelfSupervisedStage):
        predictor = MaskedPredictor(stage.model, mel_bins)
        prediction_loss = MaskedPredictionLoss(stage.objective, stage.model.encoder)
        return predictor, prediction_loss, MaskedAccuracyValidator(stage.model.quantizer)

    tokenizer = read_tokenizer(context)
    validator = ErrorRateValidator(tokenizer)
    recognition_loss = RecognitionLoss(stage.objective, stage.model.encoder)
    if isinstance(stage, AdaptStage):
        adapted = build_adapted(StageContext(context.recipe, context.run, stage))
        return adapted, recognition_loss, validator
    recognizer = Recognizer(stage.model, mel_bins, tokenizer.vocabulary_size)
    if isinstance(stage, PretrainStage):
        if stage.initialize_from:
            start = initialize_from_model(
                recognizer, StageContext(context.recipe, context.run, stage), tokenizer.pieces
            )
            _tell_start(context, start)
        return recognizer, recognition_loss, validator

    distill_context = StageContext[DistillStage](context.recipe, context.run, stage)
    caches = agree_on_caches(distill_context)
    teachers, heads = load_teachers(distill_context, tokenizer.pieces, device, caches, heartbeat.tick)
    if heads or any("sequence" in teacher.terms for teacher in teachers):
        # Drawn again from the same seed: the student's own weights are the same with and without auxiliary heads, and
        # so is what is drawn after them.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(weights_seed)
            recognizer = Student(stage.model, mel_bins, tokenizer.vocabulary_size, heads)
    if stage.initialize_from_teacher:
        initialize_from_first_teacher(recognizer, stage, teachers[0])
    distillation_loss = DistillationLoss(recognition_loss, stage.distill, teachers, heads, autocast=context.uses_bf16)
    return recognizer, distillation_loss, validator


def _tell_start(context: StageContext[AnyTrainingStage], start: Start) -> None:
    """Say once what a stage's model started from; when the stage is resumed, it goes on from a checkpoint."""
    if dist.get_rank() != 0 or context.folder.checkpoint_steps():
        return
    logger.info("%s", start.describe())
    context.run.append_event("initialized", stage=context.name, **asdict(start))


def _training_flops_per_audio_s(context: StageContext[AnyTrainingStage], model: Model, stage_loss: StageLoss) -> float:
    """Floating-point operations of training on a second of audio, teachers included; of the whole, unspread model."""
    features = context.recipe.features
    if isinstance(model, MaskedPredictor):
        assert isinstance(context.stage, SelfSupervisedStage)
        return masked_operations_per_second(model, features, context.stage.masking).training
    teachers = []
    if isinstance(stage_loss, DistillationLoss):
        for teacher_terms in stage_loss.teachers:
            if isinstance(teacher_terms.teacher, RecognizerTeacher):
                teachers.append(teacher_terms.teacher.recognizer)
    return operations_per_second(model, features, teachers).training


def write_model(context: StageContext[AnyTrainingStage]) -> None:
    """Make the finished model of a stage from its newest intact checkpoint, or as the average that it asks for."""
    if isinstance(context.stage, AdaptStage):
        write_adapted_model(StageContext(context.recipe, context.run, context.stage))
        return
    folder = context.folder
    weights, steps = averaged_weights(folder, context.stage.average)
    if context.stage.average is not None:
        logger.info("the model is the %s average of steps %s", context.stage.average.kind, steps)
    write_finished_model(folder.model, context.run, context.stage.model, context.recipe.features, weights)
