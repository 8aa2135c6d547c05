"""A finished model as a folder: `model.safetensors` with each tensor once and `model.json` that builds the module.

Sharing needs no aliases in the file: blocks are stored once, and `model.json` records which layer uses which.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.encoder import Encoder, EncoderConfig
from model.recognizer import Recognizer, RecognizerConfig

FORMAT = 1
ENCODER = "encoder."  # what the names of its tensors begin with


def save_model(
    folder: Path, config: RecognizerConfig, mel_bins: int, vocabulary_size: int, state: dict[str, Tensor]
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


def save_encoder(folder: Path, config: EncoderConfig, mel_bins: int, state: dict[str, Tensor]) -> None:
    """Write the encoder alone of a model whose state dict is `state` into `folder`."""
    description = {
        "format": FORMAT,
        "encoder": config.model_dump(mode="json"),
        "mel_bins": mel_bins,
        "block_of_layer": config.block_of_layer,
    }
    _save(folder, description, {name: tensor for name, tensor in state.items() if name.startswith(ENCODER)})


def _save(folder: Path, description: dict[str, Any], state: dict[str, Tensor]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.json").write_text(json.dumps(description, indent=1), encoding="utf-8")


def load_model(folder: Path) -> Recognizer:
    """The recogniser stored in `folder`, on the CPU, in evaluation mode.

    Raises FileNotFoundError when the folder holds no model, ValueError when the format is a later one, and KeyError
    when what it holds is an encoder alone.
    """
    description = _read_description(folder)
    config = RecognizerConfig.model_validate(description["recognizer"])
    recognizer = Recognizer(config, description["mel_bins"], description["vocabulary_size"])
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        recognizer.load_state_dict({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118
    return recognizer.eval()


def holds_encoder_alone(folder: Path) -> bool:
    """Whether `folder` holds what `save_encoder` wrote; not so where nothing can be read."""
    try:
        return "encoder" in json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def load_encoder(folder: Path) -> Encoder:
    """The encoder of the model stored in `folder`, be that an encoder alone or a recogniser, on the CPU.

    Raises FileNotFoundError when the folder holds no model and ValueError when the format is a later one.
    """
    description = _read_description(folder)
    config = EncoderConfig.model_validate(description.get("encoder") or description["recognizer"]["encoder"])
    encoder = Encoder(config, description["mel_bins"])
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        names = [name for name in tensors.keys() if name.startswith(ENCODER)]  # noqa: SIM118
        encoder.load_state_dict({name.removeprefix(ENCODER): tensors.get_tensor(name) for name in names})
    return encoder.eval()


def _read_description(folder: Path) -> dict[str, Any]:
    description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if description["format"] > FORMAT:
        raise ValueError(f"{folder} holds a model of format {description['format']}, this version reads up to {FORMAT}")
    return description
