"""A small dense student beside teachers of its own kind, in one process."""

from typing import Any

import gradients
import torch

from data.features import FeaturesConfig, LogMel
from launcher.recipe import DistillConfig, DistillStage, TeacherConfig
from launcher.recipe.teachers import hidden_layers
from launcher.training.distillation.loss import DistillationLoss
from launcher.training.distillation.terms import TeacherTerms
from launcher.training.recognition_loss import RecognitionLoss
from launcher.training.teachers.chorus import RecognizerTeacher
from model.recognizer import Recognizer, RecognizerConfig
from model.student import AuxiliaryHead, Student

DENSE = RecognizerConfig(
    encoder=gradients.CONFIG.encoder.model_copy(update={"experts": None, "groups": 4}),
    decoder=gradients.CONFIG.decoder,
)
FRONT_END = LogMel(FeaturesConfig(mel_bins=gradients.MEL_BINS))
FRAME_S = 0.04


def stage(teachers: list[dict] | None = None, **distill: Any) -> DistillStage:
    return DistillStage.model_validate(
        {
            "name": "student",
            "kind": "distill",
            "model": DENSE.model_dump(),
            "steps": 10,
            "distill": distill,
            "teachers": teachers or [{"model": "teacher"}],
        }
    )


def recognizer(seed: int = 0, **encoder: Any) -> Recognizer:
    torch.manual_seed(seed)
    config = DENSE.model_copy(update={"encoder": DENSE.encoder.model_copy(update=encoder)})
    return Recognizer(config, gradients.MEL_BINS, gradients.VOCABULARY).eval().requires_grad_(False)


def teacher_terms(of: DistillStage, config: TeacherConfig, recognizer: Recognizer, **values: Any) -> TeacherTerms:
    """What a recogniser teaches in a stage; `values` are fields of TeacherTerms."""
    teacher = RecognizerTeacher(recognizer, FRONT_END, config.input or "augmented")
    student_layers = hidden_layers(of)
    teacher_layers = config.layers or student_layers
    fields = {
        "terms": of.distill.active(),
        "layer_pairs": tuple(zip(student_layers, teacher_layers, strict=True)),
        **values,
    }
    return TeacherTerms(config.name, teacher, config.weight, ratio=FRAME_S / teacher.frame_s, **fields)


def stage_loss(
    of: DistillStage, teachers: list[TeacherTerms], auxiliary_heads: dict[str, AuxiliaryHead] | None = None
) -> DistillationLoss:
    recognition = RecognitionLoss(gradients.OBJECTIVE, DENSE.encoder)
    return DistillationLoss(recognition, of.distill, teachers, auxiliary_heads)


def single_teacher_loss(teacher: Recognizer, **distill: Any) -> DistillationLoss:
    """The loss under one teacher without auxiliary heads."""
    of = stage(**DistillConfig.model_validate(distill).model_dump())
    return stage_loss(of, [teacher_terms(of, of.named_teachers[0], teacher)])


def student(seed: int = 1, auxiliary_heads: dict[str, AuxiliaryHead] | None = None) -> Student:
    torch.manual_seed(seed)
    return Student(DENSE, gradients.MEL_BINS, gradients.VOCABULARY, auxiliary_heads or {})


def terms(of: DistillationLoss, pupil: Recognizer, lane: int = 0, progress: float = 0.0) -> dict[str, torch.Tensor]:
    """The terms of a loss for the micro-batch of a lane."""
    loss_terms, _ = of(pupil, gradients.micro_batch(lane), gradients.totals(), progress)
    return loss_terms
