"""Opens the teachers of a stage: earlier stages and folders."""

import torch

from launcher.inference.finished_model import FinishedModel
from launcher.recipe.distillation import TeacherConfig
from launcher.recipe.teachers import TeacherSpec
from launcher.run_folder import RunFolder
from launcher.training.teachers.cached import CachedTeacher
from launcher.training.teachers.chorus import RecognizerTeacher
from launcher.training.teachers.teacher import Teacher
from launcher.training.teachers.waveform import TorchaudioTeacher, TransformersTeacher
from model.recognizer import Recognizer


def load_teacher(
    run: RunFolder,
    config: TeacherConfig,
    spec: TeacherSpec,
    pieces: list[str],
    device: torch.device,
) -> Teacher:
    """A teacher of a student with these tokens, frozen, on the device; CheckpointError when it cannot be read."""
    folder = run.model_folder(config.model)
    if spec.kind == "transformers":
        return TransformersTeacher(folder, spec, device)
    if spec.kind == "torchaudio":
        return TorchaudioTeacher(folder, spec, device)

    model = FinishedModel.load(folder)
    return RecognizerTeacher(
        recognizer=model.recognizer.to(device).requires_grad_(False),
        front_end=model.features.to(device),
        # The student's own input, so that what both make of it can be compared frame by frame.
        input=config.input or "augmented",
        same_tokens=model.tokenizer.pieces == pieces,
    )


def recognizer_of(teacher: Teacher) -> Recognizer | None:
    """The recogniser behind a teacher of Chorus, read from its folder where its outputs come from a cache; none behind
    others."""
    if isinstance(teacher, CachedTeacher):
        return teacher.load_recognizer()
    if isinstance(teacher, RecognizerTeacher):
        return teacher.recognizer
    return None
