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
    run: RunFolder, teacher: TeacherConfig, spec: TeacherSpec, pieces: list[str], device: torch.device
) -> Teacher:
    """A teacher of a student with these tokens, frozen, on the device; CheckpointError when it cannot be read."""
    folder = run.model_folder(teacher.model)
    if spec.kind == "transformers":
        return TransformersTeacher(folder, spec, device)
    if spec.kind == "torchaudio":
        return TorchaudioTeacher(folder, spec, device)
    model = FinishedModel.load(folder)
    recognizer = model.recognizer.to(device).requires_grad_(False)
    same_tokens = model.tokenizer.pieces == pieces
    return RecognizerTeacher(recognizer, model.features.to(device), teacher.input or "augmented", same_tokens)


def recognizer_of(teacher: Teacher) -> Recognizer | None:
    """The recogniser behind a teacher of Chorus; read from its folder where the teacher itself is not there."""
    if isinstance(teacher, CachedTeacher):
        return teacher.load_recognizer()
    return teacher.recognizer if isinstance(teacher, RecognizerTeacher) else None
