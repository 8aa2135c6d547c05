"""A recogniser in the layouts that sherpa-onnx loads for CTC models, with its search, times and language models.

sherpa-onnx computes features itself, in the way of the kind of model that it takes this one for. Two kinds fit:

- `fire_red_asr_ctc`: Kaldi's features over full windows at 16 kHz. A model whose `features.kind` is `kaldi`, with the
  defaults of the rest, gets the features that it was trained on, in batches.
- `omnilingual_asr_ctc`: samples at 16 kHz, one recording at a time. The front-end is in the graph, whatever it is.
  sherpa-onnx takes the mean from these samples and divides them by sqrt(variance + 1e-5); the graph undoes the
  division, as the variance that is left tells what it was. A constant offset of a recording is lost.

A model of another rate fits neither. Recordings that still arrive are for kinds of streaming models with other caches.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from data.features import FeaturesConfig
from launcher.errors import ConfigError
from launcher.export.front_end import GraphFrontEnd
from launcher.export.model_files import ModelFiles
from launcher.export.network import Network, build_network
from launcher.export.onnx_graphs import Graph, check_graph, quantise, require_onnx, write_graph, write_tokens
from launcher.export.remote_code.network_chorus import valid_mask
from model.recognizer import BLANK

SAMPLE_RATE_HZ = 16_000
MODEL_FILE = "model.onnx"
# Added to the variance by sherpa-onnx, of samples whose full scale is 1.
VARIANCE_FLOOR = 1e-5
# It gives features of samples whose full scale is 32768.
FULL_SCALE = 32_768.0
# The logits of frames past a recording's end: a search passes them by as blanks.
CERTAIN = 100.0


def sherpa_kind(features: FeaturesConfig) -> str:
    """The kind of model as which sherpa-onnx loads one with these features; ConfigError when there is none."""
    if features.sample_rate_hz != SAMPLE_RATE_HZ:
        raise ConfigError(
            f"sherpa-onnx gives models whose features fit {SAMPLE_RATE_HZ} Hz alone, and this one was trained at "
            f"{features.sample_rate_hz} Hz. Export it with --format onnx: its features.json describes what it takes."
        )
    kaldi = FeaturesConfig(kind="kaldi", floor=features.floor)
    if features == kaldi:
        return "fire_red_asr_ctc"
    return "omnilingual_asr_ctc"


def write_sherpa(folder: Path, model: ModelFiles, int8: bool) -> str:
    """Write `model.onnx`, with `int8` also `model.int8.onnx`, and `tokens.txt`; the kind to load them as."""
    kind = sherpa_kind(model.features)
    require_onnx()
    network = build_network(model, separate_experts=True)
    factor = model.recognizer.encoder.subsampling.factor
    metadata = {
        "vocab_size": str(model.recognizer.vocabulary_size),
        "subsampling_factor": str(factor),
        "comment": "chorus",
    }
    batch = Dim("batch")
    if kind == "fire_red_asr_ctc":
        # The graph normalises: it has to apply the floor before.
        metadata["model_type"] = "fire-red-asr-2-ctc"
        metadata["cmvn_mean"] = ",".join(["0"] * model.features.mel_bins)
        metadata["cmvn_inv_stddev"] = ",".join(["1"] * model.features.mel_bins)
        example = torch.randn(2, 8 * factor + 3, model.features.mel_bins)
        graph = Graph(
            "model",
            FromKaldiFeatures(network, model),
            {"features": example, "lengths": torch.tensor([8 * factor + 3, 5 * factor])},
            {"features": {0: batch, 1: Dim("time", min=factor + 1)}, "lengths": {0: batch}},
            ("logits", "logit_lengths"),
        )
    else:
        metadata["model_type"] = "omnilingual-asr-ctc"
        example = torch.randn(2, SAMPLE_RATE_HZ)
        graph = Graph(
            "model",
            FromSamples(network, model),
            {"samples": example / example.std(1, correction=0, keepdim=True)},
            {"samples": {0: batch, 1: Dim("num_samples")}},
            ("logits",),
        )
    path = folder / MODEL_FILE
    write_graph(path, graph, metadata)
    check_graph(path, graph)
    if int8:
        quantise(path)
    write_tokens(folder / "tokens.txt", model)
    return kind


class FromKaldiFeatures(nn.Module):
    """Kaldi's features of samples whose full scale is 32768, not normalised, to CTC logits."""

    mean_F: Tensor
    std_F: Tensor

    def __init__(self, network: Network, model: ModelFiles):
        super().__init__()
        self.network = network
        self.log_floor = float(torch.tensor(model.features.floor).log())
        self.register_buffer("mean_F", torch.tensor(model.statistics["mean"]))
        self.register_buffer("std_F", torch.tensor(model.statistics["std"]))
        # The logarithm of power.
        self.log_scale = 2 * float(torch.tensor(FULL_SCALE, dtype=torch.float64).log())

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        features_BTF = (features - self.log_scale).clamp(min=self.log_floor)
        features_BTF = (features_BTF - self.mean_F) / self.std_F
        valid_BT = valid_mask(lengths, features.shape[1])
        return self.network(features_BTF * valid_BT[:, :, None], lengths)


class FromSamples(nn.Module):
    """Recordings of one length, as samples of mean 0 and almost variance 1, to CTC logits."""

    def __init__(self, network: Network, model: ModelFiles):
        super().__init__()
        self.network = network
        self.front_end = GraphFrontEnd(model.features, model.statistics["mean"], model.statistics["std"])
        self.config = model.features
        # As many zeros behind a recording give the shortest one the frames that the network needs.
        factor = model.recognizer.encoder.subsampling.factor
        self.num_zeros = self.config.window_samples + (factor + 1) * self.config.hop_samples

    def forward(self, samples: Tensor) -> Tensor:
        batch, num_samples = samples.shape
        # v' = v / (v + floor), so 1 - v' = floor / (v + floor). It is a small difference: in fp64.
        precise_BS = samples.double()
        remaining_B1 = 1 - precise_BS.square().mean(1, keepdim=True)
        # Of samples up to 1 the variance is 1 at most.
        remaining_B1 = remaining_B1.clamp(min=VARIANCE_FLOOR / (1 + VARIANCE_FLOOR))
        deviation_B1 = (VARIANCE_FLOOR / remaining_B1).sqrt()
        waveforms_BS = (precise_BS * deviation_B1).float()

        padded_BS = nn.functional.pad(waveforms_BS, (0, self.num_zeros))
        features_BTF = self.front_end(padded_BS)
        num_frames = (num_samples - self.config.window_samples) // self.config.hop_samples + 1
        lengths_B = torch.full((batch,), num_frames, dtype=torch.int64).clamp(min=0)
        valid_BT = valid_mask(lengths_B, features_BTF.shape[1])
        logits_BSV, lengths_B = self.network(features_BTF * valid_BT[:, :, None], lengths_B)

        valid_BS = valid_mask(lengths_B, logits_BSV.shape[1])
        blank_V = torch.zeros(logits_BSV.shape[2])
        blank_V[BLANK] = CERTAIN
        return torch.where(valid_BS[:, :, None], logits_BSV, blank_V)
