"""A recogniser of Chorus as a teacher: an earlier stage's, or the folder of a finished model."""

from typing import Literal

import torch

from data.features import LogMel
from launcher.training.feature_batch import FeatureBatch
from launcher.training.teachers.teacher import Teacher, TeacherOutput
from model.recognizer import Recognizer

TeacherInput = Literal["augmented", "clean", "waveform"]


class RecognizerTeacher(Teacher):
    """A recogniser on the student's features, or on waveforms through its own front-end."""

    def __init__(
        self,
        recognizer: Recognizer,
        front_end: LogMel,
        input: TeacherInput = "augmented",
        same_tokens: bool = True,
    ):
        self.recognizer = recognizer
        self.front_end = front_end
        self.input = input
        self.same_tokens = same_tokens
        config = front_end.config
        frame_samples = recognizer.encoder.subsampling.factor * config.hop_samples
        self.frame_s = frame_samples / config.sample_rate_hz
        # Augmented features are the student's own; what they were made from is kept only where somebody asks for it.
        self.needs_source = input != "augmented"
        self.has_decoder = same_tokens and recognizer.decoder is not None

    @torch.no_grad()
    def __call__(self, batch: FeatureBatch) -> TeacherOutput:
        features_BTF = batch.features_BTF
        lengths_B = batch.lengths_B
        if self.input == "clean":
            assert batch.source is not None
            features_BTF = batch.source.features_BTF
        elif self.input == "waveform":
            assert batch.source is not None
            source = batch.source
            features_BTF, lengths_B = self.front_end(source.waveforms_BS, source.samples_B)

        # Other tokens: the transcript means nothing to its decoder, and its logits nothing to the student.
        if not self.same_tokens:
            output = self.recognizer(features_BTF, lengths_B, None)
            return TeacherOutput(output.encoder.layers, output.encoder.lengths_B)
        output = self.recognizer(features_BTF, lengths_B, batch.tokens_BU)
        return TeacherOutput(
            layers=output.encoder.layers,
            lengths_B=output.encoder.lengths_B,
            ctc_BSV=output.ctc_BSV,
            decoder_BUV=output.decoder_BUV,
        )
