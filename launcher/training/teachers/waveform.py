"""Teachers that are not of Chorus: encoders of `transformers` and of torchaudio, which take waveforms of 16 kHz through
front-ends of their own and give hidden states alone.

Utterances are batched only where padding cannot reach a valid frame; otherwise each has a forward pass of its own.

Shapes: B batch, W waveform samples, S frames, D width.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from launcher.errors import CheckpointError, ConfigError
from launcher.inference.foreign_folder import (
    MissingWeightsError,
    check_size,
    open_pretrained,
    read_mapping,
    refuse_code,
)
from launcher.recipe.teachers import FILTERBANK_MODELS, SAMPLE_RATE_HZ, TeacherSpec
from launcher.training.feature_batch import FeatureBatch
from launcher.training.teachers.teacher import Teacher, TeacherOutput

# Filterbanks of transformers: windows of 25 ms every 10 ms.
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160


class WaveformTeacher(Teacher):
    """Encodes the waveforms of a batch: `batched`, or one by one."""

    needs_source = True

    def __init__(self, spec: TeacherSpec, device: torch.device, batched: bool):
        self.spec = spec
        self.device = device
        self.batched = batched
        self.frame_s = spec.frame_s

    @torch.no_grad()
    def __call__(self, batch: FeatureBatch) -> TeacherOutput:
        assert batch.source is not None
        samples = batch.source.samples_B.tolist()
        lengths = [self.num_frames(num_samples) for num_samples in samples]

        # Utterances shorter than one frame stay zero: no encoder takes them.
        groups: list[list[int]] = []
        for row, length in enumerate(lengths):
            if length == 0:
                continue
            if self.batched and groups:
                groups[0].append(row)
            else:
                groups.append([row])

        # Of one frame at least: an empty lane passes through the loss like any other.
        shape = (len(samples), max(1, *lengths), self.spec.width)
        layers: list[Tensor] = []
        for _ in range(self.spec.layers):
            layers.append(torch.zeros(shape, device=self.device))
        for group in groups:
            waveforms: list[Tensor] = []
            for row in group:
                waveforms.append(batch.source.waveforms_BS[row, : samples[row]])
            encoded = self.encode(waveforms)
            for layer_BSD, states_BSD in zip(layers, encoded, strict=True):
                for row, states_SD in zip(group, states_BSD, strict=True):
                    length = lengths[row]
                    # What lies beyond the length comes from the padding of the group.
                    layer_BSD[row, :length] = states_SD[:length].float()
        return TeacherOutput(layers, torch.tensor(lengths, device=self.device))

    @abstractmethod
    def num_frames(self, samples: int) -> int:
        """The valid frames of so many samples."""

    @abstractmethod
    def encode(self, waveforms: Sequence[Tensor]) -> Sequence[Tensor]:
        """The output [B, S, D] of every layer for waveforms [W], padded."""


class TransformersTeacher(WaveformTeacher):
    """The encoder of a wav2vec 2.0, HuBERT or Speech2Text model, whatever head it was saved with."""

    def __init__(self, folder: Path, spec: TeacherSpec, device: torch.device):
        try:
            from transformers import AutoFeatureExtractor, AutoModel
        except ImportError:
            raise ConfigError(
                f"The teacher in {folder} is a model of transformers, which is not installed. "
                "Run: pip install 'chorus-asr[teachers]'."
            ) from None
        refuse_code(folder, "The teacher")
        try:
            self.front_end = AutoFeatureExtractor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            model: Any = open_pretrained(folder, AutoModel)
        except MissingWeightsError as missing:
            raise CheckpointError(
                f"The teacher in {folder} lacks weights of the model in its config.json, {missing} among them: they "
                "would be drawn at random. Copy the folder again from where it was made."
            ) from None
        # Each class of transformers stumbles over odd values of its files in its own way.
        except Exception as error:
            # Some tell over several lines.
            reason = " ".join(f"{error}".split())
            raise CheckpointError(
                f"The teacher in {folder} cannot be opened by transformers: {reason}. It takes what save_pretrained of "
                "model and feature extractor write: config.json, model.safetensors, preprocessor_config.json."
            ) from None

        self.filterbank = model.config.model_type in FILTERBANK_MODELS
        encoder = model
        # These have a decoder too.
        if self.filterbank:
            encoder = model.get_encoder()
        self.encoder = encoder.to(device).eval().requires_grad_(False)
        # Group norms look at all of an utterance, and a filterbank's convolutions beyond its end.
        batched = not self.filterbank and model.config.feat_extract_norm == "layer"
        super().__init__(spec, device, batched)

    def num_frames(self, samples: int) -> int:
        length = samples
        if self.filterbank:
            length = 0
            if samples >= WINDOW_SAMPLES:
                length = 1 + (samples - WINDOW_SAMPLES) // HOP_SAMPLES
        if not length:
            return 0
        num_frames = self.encoder._get_feat_extract_output_lengths(torch.tensor(length))
        return max(0, int(num_frames))

    def encode(self, waveforms: Sequence[Tensor]) -> Sequence[Tensor]:
        # The front-end computes on the CPU, in numpy.
        arrays = [waveform.cpu().numpy() for waveform in waveforms]
        inputs = self.front_end(
            arrays,
            sampling_rate=SAMPLE_RATE_HZ,
            padding=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.device)
        output = self.encoder(**inputs, output_hidden_states=True)
        # The first is the input of the first layer.
        return output.hidden_states[1:]


class TorchaudioTeacher(WaveformTeacher):
    """A wav2vec 2.0 or HuBERT model of torchaudio: torchaudio.json says how to build it, and whether waveforms are
    normalised first."""

    def __init__(self, folder: Path, spec: TeacherSpec, device: torch.device):
        from torchaudio.models import wav2vec2_model

        description = read_mapping(folder / "torchaudio.json", "The teacher")
        try:
            arguments = description["model"]
            check_size(folder, lambda: wav2vec2_model(**arguments))
            model = wav2vec2_model(**arguments)
            model.load_state_dict(load_file(folder / "model.safetensors"))
        # torchaudio checks none of its arguments.
        except Exception as error:
            reason = " ".join(f"{error}".split())
            raise CheckpointError(
                f"The teacher in {folder} cannot be opened by torchaudio: {reason}. torchaudio.json holds the "
                "arguments of torchaudio.models.wav2vec2_model under `model`, model.safetensors the weights of that "
                "model."
            ) from None
        self.normalize = bool(description.get("normalize_waveform", False))
        self.convolutions: list[list[int]] = arguments["extractor_conv_layer_config"]
        self.model = model.to(device).eval().requires_grad_(False)
        # Group norms look at all of an utterance, padding included.
        super().__init__(spec, device, batched=arguments["extractor_mode"] == "layer_norm")

    def num_frames(self, samples: int) -> int:
        length = samples
        for _, kernel, stride in self.convolutions:
            if length < kernel:
                return 0
            length = (length - kernel) // stride + 1
        return length

    def encode(self, waveforms: Sequence[Tensor]) -> Sequence[Tensor]:
        if self.normalize:
            normalized = []
            for waveform in waveforms:
                # Before padding, which would change the mean.
                normalized.append(functional.layer_norm(waveform, waveform.shape))
            waveforms = normalized
        samples = [len(waveform) for waveform in waveforms]
        samples_B = torch.tensor(samples, device=self.device)
        padded_BW = pad_sequence(list(waveforms), batch_first=True)
        layers, _ = self.model.extract_features(padded_BW, samples_B)
        return layers
