"""A small dense student beside teachers of its own kind, in one process."""

from typing import Any

import gradients
import torch

from data.features import FeaturesConfig, LogMel
from launcher.recipe import DistillConfig, DistillStage, TeacherConfig
from launcher.recipe.teachers import hidden_layers
from launcher.training.distillation.loss import DistillationLoss, TeacherTerms
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


def lesson(of: DistillStage, config: TeacherConfig, teacher: Recognizer, **values: Any) -> TeacherTerms:
    compared = hidden_layers(of)
    given = {
        "terms": of.distill.active(),
        "pairs": tuple(zip(compared, config.layers or compared, strict=True)),
        **values,
    }
    opened = RecognizerTeacher(teacher, FRONT_END, config.input or "augmented")
    return TeacherTerms(config.name, opened, config.weight, ratio=FRAME_S / opened.frame_s, **given)


def task(
    of: DistillStage, named_teachers: list[TeacherTerms], helpers: dict[str, AuxiliaryHead] | None = None
) -> DistillationLoss:
    return DistillationLoss(RecognitionLoss(gradients.OBJECTIVE, DENSE.encoder), of.distill, named_teachers, helpers)


def simple_task(teacher: Recognizer, **distill: Any) -> DistillationLoss:
    """One teacher without helpers."""
    of = stage(**DistillConfig.model_validate(distill).model_dump())
    return task(of, [lesson(of, of.named_teachers[0], teacher)])


def student(seed: int = 1, helpers: dict[str, AuxiliaryHead] | None = None) -> Student:
    torch.manual_seed(seed)
    return Student(DENSE, gradients.MEL_BINS, gradients.VOCABULARY, helpers or {})


def parts(of: DistillationLoss, pupil: Recognizer, lane: int = 0, progress: float = 0.0) -> dict[str, torch.Tensor]:
    found, _ = of(pupil, gradients.micro_batch(lane), gradients.totals(), progress)
    return found
