"""A finished model as a folder: `model.safetensors` with each tensor once and `model.json` that builds the module.

In the layout of Hugging Face the same description is part of its `config.json`. Sharing needs no aliases in the file:
blocks are stored once, and `model.json` records which layer uses which.
"""

import json
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.encoder import Encoder, EncoderConfig
from model.recognizer import Recognizer, RecognizerConfig

ConfigT = TypeVar("ConfigT", bound=BaseModel)

# A later version reads earlier formats; a later format is refused.
FORMAT = 1
DESCRIPTION_FILE = "model.json"
# Holds the same fields beside those of transformers, in a folder of Hugging Face's layout.
HUB_DESCRIPTION_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# Bounds of what is read: the largest that a recipe may ask for.
MAX_DESCRIPTION_BYTES = 2**22
MAX_VOCABULARY_SIZE = 10**6
MAX_MEL_BINS = 1024
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
    _save(folder, describe_recognizer(config, mel_bins, vocabulary_size), state)


def describe_recognizer(
    config: RecognizerConfig,
    mel_bins: int,
    vocabulary_size: int,
) -> dict[str, Any]:
    """The fields from which `read_description` builds a recogniser."""
    return {
        "format": FORMAT,
        "recognizer": config.model_dump(mode="json"),
        "mel_bins": mel_bins,
        "vocabulary_size": vocabulary_size,
        "block_of_layer": config.encoder.block_of_layer,
    }


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
    save_weights(folder, state)
    text = json.dumps(description, indent=1)
    (folder / DESCRIPTION_FILE).write_text(text, encoding="utf-8")


def save_weights(folder: Path, state: dict[str, Tensor]) -> None:
    """Write `model.safetensors` alone."""
    tensors = {}
    for name, tensor in state.items():
        # safetensors refuses tensors that are not contiguous.
        tensors[name] = tensor.detach().cpu().contiguous()
    # transformers refuses files of tensors that do not say which framework wrote them.
    save_tensors(tensors, folder / WEIGHTS_FILE, {"format": "pt"})


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file of safetensors that those may read who may read other new files of this process.

    The library would give it to its owner alone (0.8), so that a colleague or a server of another user could open
    everything in a folder but the weights.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(tensors, path, metadata)
    path.chmod(mode)


def is_hub_layout(folder: Path) -> bool:
    """Whether a folder holds a model in the layout of Hugging Face, and not in Chorus' own."""
    return not (folder / DESCRIPTION_FILE).exists() and (folder / HUB_DESCRIPTION_FILE).exists()


def description_path(folder: Path) -> Path:
    """The file that describes the model in `folder`, in the layout of Chorus or of Hugging Face."""
    if is_hub_layout(folder):
        return folder / HUB_DESCRIPTION_FILE
    return folder / DESCRIPTION_FILE


def read_description(folder: Path) -> ModelDescription:
    """What the `model.json` or `config.json` of `folder` says; everything that reads one does so here.

    Raises OSError when it cannot be read, and ValueError when it is not what `save_model` or `save_encoder` writes: no
    JSON, of a later format, or with a configuration that is refused.
    """
    path = description_path(folder)
    stored = read_stored(path, "model")
    if stored["format"] > FORMAT:
        raise ValueError(f"{folder} holds a model of format {stored['format']}, this version reads up to {FORMAT}")

    mel_bins = _read_size(stored, "mel_bins", MAX_MEL_BINS, path)
    # An encoder alone has its configuration at the top, a recogniser under its own.
    if "encoder" in stored:
        encoder = validated(EncoderConfig, stored["encoder"], path)
        return ModelDescription(encoder, mel_bins)
    recognizer = validated(RecognizerConfig, stored.get("recognizer"), path)
    vocabulary_size = _read_size(stored, "vocabulary_size", MAX_VOCABULARY_SIZE, path)
    return ModelDescription(recognizer.encoder, mel_bins, recognizer, vocabulary_size)


def read_stored(path: Path, kind: str) -> dict[str, Any]:
    """The values in the description of a `kind` of thing that somebody stored, with the number of its format.

    Raises OSError when it cannot be read, and ValueError when it is too large, no JSON, or has no such number.
    """
    check_regular(path)
    if path.stat().st_size > MAX_DESCRIPTION_BYTES:
        raise ValueError(f"{path} has more than {MAX_DESCRIPTION_BYTES} bytes")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deep") from None
    if not isinstance(stored, dict) or type(stored.get("format")) is not int:
        raise ValueError(f"{path} describes no {kind}: another program wrote it")
    return stored


def check_regular(path: Path) -> None:
    """ValueError for a pipe, which would be waited for, a device or a folder; OSError where there is nothing."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is no regular file")


def validated(kind: type[ConfigT], values: Any, path: Path) -> ConfigT:
    """The configuration that values in a file are; ValueError, naming the first that is refused."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} describes no {kind.__name__}: {place[:80]} {first['msg']}") from None


def _read_size(stored: dict[str, Any], key: str, largest: int, path: Path) -> int:
    value = stored.get(key)
    # Not isinstance: True is an int, and no size.
    if type(value) is not int or not 1 <= value <= largest:
        raise ValueError(f"{path} has {str(value)[:40]} as its {key}, where a number from 1 to {largest} belongs")
    return value


def load_model(folder: Path) -> Recognizer:
    """The recogniser stored in `folder`, on the CPU, in evaluation mode.

    Raises OSError when the folder holds no model, ValueError when it cannot be read, is of a later format or its
    weights are not those of its description, and KeyError when what it holds is an encoder alone.
    """
    description = read_description(folder)
    # On the meta device first: weights that do not fit are refused before the model takes memory.
    state = _read_weights(folder, description, description.build_recognizer)
    recognizer = description.build_recognizer()
    recognizer.load_state_dict(state)
    return recognizer.eval()


class WithoutValues(TorchFunctionMode):
    """Tensors are not filled: on the meta device they have no values, and drawing them there would import torch's
    compiler, which takes seconds and 150 MB (torch 2.14)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in (Tensor.uniform_, Tensor.normal_):
            return args[0]
        if getattr(func, "__module__", "") == "torch.nn.init":
            # The tensor comes first, or by its name.
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _read_weights(
    folder: Path, description: ModelDescription, build: Callable[[], nn.Module], prefix: str = ""
) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it, of the model that `build` makes.

    ValueError when they cannot be read or are of another model. They are compared before the model gets any memory: a
    description of a few bytes may ask for more than a machine has, but not for more than its weights' file holds.
    """
    path = folder / WEIGHTS_FILE
    described_in = description_path(folder).name
    state: dict[str, Tensor] = {}
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as tensors:
            num_tensors = len(tensors.keys())
            # Every layer has some of its own; without them a model of a thousand is not even put together.
            if num_tensors < description.encoder.layers:
                raise ValueError(
                    f"{path} lacks tensors: it holds {num_tensors}, and {described_in} speaks of "
                    f"{description.encoder.layers} layers"
                )
            with torch.device("meta"), WithoutValues():
                expected = build().state_dict()
            for stored_name in tensors.keys():  # noqa: SIM118  no mapping: it has nothing else to go over
                if not stored_name.startswith(prefix):
                    continue
                name = stored_name.removeprefix(prefix)
                if name not in expected:
                    raise ValueError(f"{path} holds {stored_name[:80]}, no tensor of the model in {described_in}")
                shape = tuple(tensors.get_slice(stored_name).get_shape())
                if shape != expected[name].shape:
                    raise ValueError(
                        f"{path} holds {stored_name} of shape {shape}, and {described_in} makes it "
                        f"{tuple(expected[name].shape)}"
                    )
                state[name] = tensors.get_tensor(stored_name)
    # The second where a process has not the address space for a file that is larger than any disk, by its holes.
    except (SafetensorError, MemoryError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    missing = sorted(expected.keys() - state.keys())
    if missing:
        raise ValueError(f"{path} lacks {missing[0]}, a tensor of the model in {described_in}")
    return state


def holds_encoder_alone(folder: Path) -> bool:
    """Whether `folder` holds what `save_encoder` wrote; not so where nothing can be read."""
    try:
        return read_description(folder).recognizer is None
    except (OSError, ValueError):
        return False


def load_encoder(folder: Path) -> Encoder:
    """The encoder of the model stored in `folder`, be that an encoder alone or a recogniser, on the CPU.

    Raises OSError when the folder holds no model, and ValueError when it cannot be read, is of a later format or its
    weights are not those of its description.
    """
    description = read_description(folder)

    def build_encoder() -> Encoder:
        return Encoder(description.encoder, description.mel_bins)

    state = _read_weights(folder, description, build_encoder, ENCODER_PREFIX)
    encoder = build_encoder()
    encoder.load_state_dict(state)
    return encoder.eval()
