"""A teacher whose outputs were stored beforehand: it is read, and no model is there to hear anything."""

from pathlib import Path

import torch

from data.sidecars import Arrays
from launcher.inference.finished_model import FinishedModel
from launcher.recipe.teachers import TeacherSpec
from launcher.training.feature_batch import FeatureBatch
from launcher.training.teachers.cache_codec import empty, restore
from launcher.training.teachers.cache_match import CacheDescription
from launcher.training.teachers.teacher import Teacher, TeacherOutput
from model.layers.subsampling import output_length
from model.recognizer import Recognizer


class CachedTeacher(Teacher):
    """The stored outputs of a teacher of this name, which the loader has read with the audio of a batch.

    `folder` is where they are, `model` where the teacher itself is.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        description: CacheDescription,
        model: Path,
        spec: TeacherSpec,
        vocabulary_size: int,
        device: torch.device,
    ):
        self.name, self.folder, self.model, self.spec = name, folder, model, spec
        self.vocabulary_size, self.device, self.frame_s = vocabulary_size, device, spec.frame_s
        self.same_tokens, self.has_decoder = description.same_tokens, description.has_decoder
        kept = description.kept
        has = {"ctc": kept.ctc and self.same_tokens, "decoder": kept.decoder and self.has_decoder}
        self.nothing: Arrays = empty(spec.width, vocabulary_size, kept.model_copy(update=has))
        # A teacher that hears the student's features pads them as the student does.
        self.factor = spec.factor if description.heard.features else None

    def __call__(self, batch: FeatureBatch) -> TeacherOutput:
        num_frames = output_length(batch.features_BTF.shape[1], self.factor) if self.factor else 1
        stored = batch.sidecars[self.name] or [self.nothing]
        return restore(stored, self.vocabulary_size, self.device, num_frames, batch.tokens_BU.shape[1] + 1)

    def load_recognizer(self) -> Recognizer | None:
        """The recogniser behind it, read anew; none where it is not one of Chorus."""
        return FinishedModel.load(self.model).recognizer if self.spec.kind == "chorus" else None
