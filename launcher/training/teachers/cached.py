"""A teacher whose outputs were stored beforehand: they are read, and no model runs."""

from pathlib import Path

import torch

from data.errors import DataError
from data.shards.sidecars import Arrays
from launcher.inference.finished_model import FinishedModel
from launcher.recipe.teachers import TeacherSpec
from launcher.training.feature_batch import FeatureBatch
from launcher.training.teachers.cache_codec import CTC, DECODER, FRAMES, REST_SUFFIX, TOKENS_SUFFIX, empty, restore
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
        self.name = name
        self.folder = folder
        self.model = model
        self.spec = spec
        self.vocabulary_size = vocabulary_size
        self.device = device
        self.frame_s = spec.frame_s
        self.same_tokens = description.same_tokens
        self.has_decoder = description.has_decoder

        # What is stored for an utterance of no frames, which stands in for an empty lane.
        contents = description.contents
        present = {
            "ctc": contents.ctc and description.same_tokens,
            "decoder": contents.decoder and description.has_decoder,
        }
        stored_contents = contents.model_copy(update=present)
        self.empty_arrays = empty(spec.width, vocabulary_size, stored_contents)
        # A teacher of the student's features pads them as the student does; any other has a length of its own.
        self.factor = spec.factor if description.inputs.features else None

    def __call__(self, batch: FeatureBatch) -> TeacherOutput:
        # Where a teacher's frames are its own, their number follows from what is stored.
        num_frames = 1
        if self.factor:
            num_frames = output_length(batch.features_BTF.shape[1], self.factor)
        # The tokens and the end.
        num_targets = batch.tokens_BU.shape[1] + 1
        stored = batch.sidecars[self.name] or [self.empty_arrays]
        for arrays in stored:
            if len(arrays.get(DECODER, ())) > num_targets:
                raise DataError(
                    f"The cache of teacher {self.name} in {self.folder} has outputs of more tokens than the transcript "
                    "of their utterance. Remove the folder: the cache is of other shards, or was changed."
                )
        return restore(stored, self.vocabulary_size, self.device, num_frames, num_targets)

    def check_stored(self, arrays: Arrays) -> None:
        """ValueError for arrays that are not those of an utterance of this teacher."""
        frames = arrays.get(FRAMES)
        if frames is None or frames.shape != () or frames.dtype.kind not in "iu" or frames < 0:
            raise ValueError("it has no number of frames")
        for name, empty_values in self.empty_arrays.items():
            if name == FRAMES:
                continue
            values = arrays.get(name)
            if values is None or values.dtype != empty_values.dtype or values.ndim != 2:
                raise ValueError(f"it has no {name}")
            # A decoder has a position for each token, which the batch has to tell.
            if name != DECODER and len(values) != frames:
                raise ValueError(f"its {name} is of {len(values)} frames, and there are {frames}")
            width = empty_values.shape[1]
            if values.shape[1] == width:
                continue
            if name not in (CTC, DECODER) or not 0 < values.shape[1] < width:
                raise ValueError(f"its {name} has {values.shape[1]} values a frame, and {width} belong there")
            tokens = arrays.get(name + TOKENS_SUFFIX)
            rest = arrays.get(name + REST_SUFFIX)
            if tokens is None or tokens.shape != values.shape or tokens.dtype.kind != "u":
                raise ValueError(f"it does not say of which tokens its {name} is")
            if tokens.max(initial=0) >= width:
                raise ValueError(f"its {name} is of token {tokens.max()}, and there are {width}")
            if rest is None or rest.shape != values.shape[:1] or rest.dtype != values.dtype:
                raise ValueError(f"it does not say what is left of its {name}")

    def load_recognizer(self) -> Recognizer | None:
        """The recogniser behind it, read anew; none where it is not one of Chorus."""
        if self.spec.kind != "chorus":
            return None
        return FinishedModel.load(self.model).recognizer
