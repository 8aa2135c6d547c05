"""Small finished models of every kind, with random weights through the real classes."""

from pathlib import Path

import numpy as np
import torch
from phrases import phrase_utterances

from data.audio import read_clip
from data.features import FeaturesConfig
from data.text.tokenizer import TokenizerConfig, train_tokenizer
from launcher.inference.finished_model import write_finished_model
from launcher.run_folder import RunFolder, write_json
from model.recognizer import Recognizer, RecognizerConfig

SAMPLE_RATE_HZ = 16_000
DECODER = {"layers": 1, "heads": 2, "feedforward_width": 16}
SMALL = {"width": 16, "heads": 2, "feedforward_width": 24, "kernel_size": 5, "subsampling": {"channels": 4}}
# The recogniser, and the kind of its features.
KINDS: dict[str, tuple[dict, str]] = {
    "full": ({"encoder": {**SMALL, "layers": 2}, "decoder": DECODER}, "log_mel"),
    "shared with experts": (
        {
            "encoder": {
                **SMALL,
                "layers": 4,
                "groups": 2,
                "sharing": "cyclic",
                "norms": "group",
                "positions": "relative",
                "convolution_norm": "batch",
                "experts": {
                    "count": 3,
                    "placement": "both",
                    "residual": True,
                    "router": {"scope": "conditioned", "per_frame": 2, "bias_rate": 0.1},
                },
            },
        },
        "kaldi",
    ),
    "streaming": (
        {
            "encoder": {
                **SMALL,
                "layers": 2,
                "groups": 1,
                "causal_convolution": True,
                "chunks": {"max_frames": 6},
                "experts": {"count": 2},
            },
            "decoder": DECODER,
        },
        "log_mel",
    ),
    "one layer": ({"encoder": {**SMALL, "layers": 1, "experts": {"count": 2}}}, "log_mel"),
    "streaming with relative positions": (
        {
            "encoder": {
                **SMALL,
                "layers": 3,
                "private_head": 1,
                "groups": 1,
                "positions": "relative",
                "convolution_norm": "batch",
                "causal_convolution": True,
                "chunks": {"max_frames": 6},
                "convolution_views": [{"kernel_size": 3}, {"kernel_size": 3, "dilation": 2}],
                "subsampling": {"channels": 4, "factor": 8},
                "experts": {"count": 3, "placement": "first", "router": {"scope": "group"}},
            },
        },
        "kaldi",
    ),
    "transducer": (
        {
            "encoder": {
                **SMALL,
                "layers": 3,
                "private_tail": 1,
                "groups": 1,
                "positions": "none",
                "convolution_views": [{"kernel_size": 5}, {"kernel_size": 1}, {"kernel_size": 3, "dilation": 2}],
                "subsampling": {"channels": 4, "factor": 6, "convolutions": "separable"},
                "experts": {"count": 2, "router": {"scope": "global"}},
            },
            "decoder": {**DECODER, "right_to_left_layers": 1},
            "transducer": {"width": 8},
        },
        "log_mel",
    ),
}


def write_small_model(folder: Path, kind: str, seed: int = 1, features: str | None = None) -> Path:
    """A finished model of a kind in `folder`, with its own kind of features or another one; its run lies beside it."""
    values, feature_kind = KINDS[kind]
    run = RunFolder(folder.parent / f"{folder.name}-run")
    texts = [utterance.text for utterance in phrase_utterances(20)]
    tokenizer = train_tokenizer(texts, TokenizerConfig(kind="char"), run.tokenizer)
    generator = np.random.default_rng(seed)
    front_end = FeaturesConfig.model_validate({"kind": features or feature_kind})
    mean = generator.normal(-8, 1, front_end.mel_bins)
    std = generator.uniform(2, 4, front_end.mel_bins)
    write_json(run.features_file, {"mean": mean.tolist(), "std": std.tolist()})
    config = RecognizerConfig.model_validate(values)
    torch.manual_seed(seed)
    recognizer = Recognizer(config, front_end.mel_bins, tokenizer.vocabulary_size)
    # Norms and biases begin as ones and zeros, which would hide those that an export forgets.
    for name, tensor in recognizer.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.dim() <= 1 or tensor.shape[-2] == 1:
            tensor.add_(0.2 * torch.randn_like(tensor))
    # Outputs far apart: texts are long, and rounding changes none of them.
    with torch.no_grad():
        recognizer.ctc.weight.mul_(4)
    write_finished_model(folder, run, config, front_end, recognizer.state_dict())
    return folder


def real_speech(count: int = 3, sample_rate_hz: int = SAMPLE_RATE_HZ) -> list[np.ndarray]:
    """Recordings of different lengths."""
    return [read_clip(utterance.clips[0], sample_rate_hz) for utterance in phrase_utterances(count)]
