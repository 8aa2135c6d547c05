"""A finished model as a folder: `model.safetensors` with each tensor once and `model.json` that builds the module.

Sharing needs no aliases in the file: blocks are stored once, and `model.json` records which layer uses which.
"""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.recognizer import Recognizer, RecognizerConfig

FORMAT = 1


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
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.json").write_text(json.dumps(description, indent=1), encoding="utf-8")


def load_model(folder: Path) -> Recognizer:
    """The recogniser stored in `folder`, on the CPU, in evaluation mode.

    Raises FileNotFoundError when the folder holds no model and ValueError when the format is a later one.
    """
    description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if description["format"] > FORMAT:
        raise ValueError(f"{folder} holds a model of format {description['format']}, this version reads up to {FORMAT}")
    config = RecognizerConfig.model_validate(description["recognizer"])
    recognizer = Recognizer(config, description["mel_bins"], description["vocabulary_size"])
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        recognizer.load_state_dict({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118
    return recognizer.eval()
