"""A finished model as a folder: `model.safetensors` with each tensor once and `model.json` that builds the module.

Sharing needs no aliases in the file: blocks are stored once, and `model.json` records which layer uses which.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.encoder import Encoder, EncoderConfig
from model.recognizer import Recognizer, RecognizerConfig

FORMAT = 1
DESCRIPTION_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
# Begins the names of an encoder's tensors in the files of recognisers and of encoders alone.
ENCODER_PREFIX = "encoder."


@dataclass(frozen=True)
class ModelDescription:
    """What `model.json` says. Of an encoder alone there is no `recognizer` and no `vocabulary_size`."""

    encoder: EncoderConfig
    mel_bins: int
    recognizer: RecognizerConfig | None = None
    vocabulary_size: int | None = None

    def build_recognizer(self) -> Recognizer:
        """The recogniser with weights that are drawn anew. Raises KeyError of an encoder alone."""
        if self.recognizer is None or self.vocabulary_size is None:
            raise KeyError("recognizer")
        return Recognizer(self.recognizer, self.mel_bins, self.vocabulary_size)


def save_model(
    folder: Path,
    config: RecognizerConfig,
    mel_bins: int,
    vocabulary_size: int,
    state: dict[str, Tensor],
) -> None:
    """Write the recogniser whose state dict is `state` (every expert in it, whoever trained it) into `folder`."""
    description = {
        "format": FORMAT,
        "recognizer": config.model_dump(mode="json"),
        "mel_bins": mel_bins,
        "vocabulary_size": vocabulary_size,
        "block_of_layer": config.encoder.block_of_layer,
    }
    _save(folder, description, state)


def save_encoder(
    folder: Path,
    config: EncoderConfig,
    mel_bins: int,
    state: dict[str, Tensor],
) -> None:
    """Write the encoder alone of a model whose state dict is `state` into `folder`."""
    description = {
        "format": FORMAT,
        "encoder": config.model_dump(mode="json"),
        "mel_bins": mel_bins,
        "block_of_layer": config.block_of_layer,
    }
    encoder_state = {name: tensor for name, tensor in state.items() if name.startswith(ENCODER_PREFIX)}
    _save(folder, description, encoder_state)


def _save(
    folder: Path,
    description: dict[str, Any],
    state: dict[str, Tensor],
) -> None:
    tensors = {}
    for name, tensor in state.items():
        tensors[name] = tensor.detach().cpu().contiguous()  # safetensors refuses others
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    text = json.dumps(description, indent=1)
    (folder / DESCRIPTION_FILE).write_text(text, encoding="utf-8")


def read_description(folder: Path) -> ModelDescription:
    """What the `model.json` of `folder` says; everything that reads one does so here.

    Raises OSError when it cannot be read, ValueError when it is no JSON, of a later format or with a configuration that
    is refused, and KeyError when something is missing in it.
    """
    stored = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    if not isinstance(stored, dict) or not isinstance(stored["format"], int):
        raise ValueError(f"{folder / DESCRIPTION_FILE} describes no model: another program wrote it")
    if stored["format"] > FORMAT:
        raise ValueError(f"{folder} holds a model of format {stored['format']}, this version reads up to {FORMAT}")
    # An encoder alone has its configuration at the top, a recogniser under its own.
    if "encoder" in stored:
        encoder = EncoderConfig.model_validate(stored["encoder"])
        return ModelDescription(encoder, stored["mel_bins"])
    recognizer = RecognizerConfig.model_validate(stored["recognizer"])
    return ModelDescription(recognizer.encoder, stored["mel_bins"], recognizer, stored["vocabulary_size"])


def load_model(folder: Path) -> Recognizer:
    """The recogniser stored in `folder`, on the CPU, in evaluation mode.

    Raises FileNotFoundError when the folder holds no model, ValueError when the format is a later one, and KeyError
    when what it holds is an encoder alone.
    """
    recognizer = read_description(folder).build_recognizer()
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as tensors:
        names = tensors.keys()
        recognizer.load_state_dict({name: tensors.get_tensor(name) for name in names})
    return recognizer.eval()


def holds_encoder_alone(folder: Path) -> bool:
    """Whether `folder` holds what `save_encoder` wrote; not so where nothing can be read."""
    try:
        return read_description(folder).recognizer is None
    except (OSError, ValueError, KeyError):
        return False


def load_encoder(folder: Path) -> Encoder:
    """The encoder of the model stored in `folder`, be that an encoder alone or a recogniser, on the CPU.

    Raises FileNotFoundError when the folder holds no model and ValueError when the format is a later one.
    """
    description = read_description(folder)
    encoder = Encoder(description.encoder, description.mel_bins)
    state = {}
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as tensors:
        names = tensors.keys()
        for name in names:
            if name.startswith(ENCODER_PREFIX):
                state[name.removeprefix(ENCODER_PREFIX)] = tensors.get_tensor(name)
    encoder.load_state_dict(state)
    return encoder.eval()
