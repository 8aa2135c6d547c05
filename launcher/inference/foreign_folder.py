"""What is looked at in a folder of another library before that library opens it: nothing in it may name code or weights
elsewhere, or ask for more memory than its weights justify.

`what` begins each message: "The teacher", "The model".
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from data.files import read_json
from launcher.errors import CheckpointError

# What a model may have beyond twice the stored values: a few of the smallest models' layers.
SPARE_VALUES = 1 << 20


class MissingWeightsError(Exception):
    """The name of the first weight that a model has and its folder lacks."""


def read_mapping(file: Path, what: str) -> dict[str, Any]:
    """The content of a JSON file that describes a model; CheckpointError when it is no mapping."""
    try:
        description = read_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{what} in {file.parent} has a {file.name} that cannot be read: {error}.") from None
    if not isinstance(description, dict):
        raise CheckpointError(f"{what} in {file.parent} has a {file.name} that cannot be read: it is no mapping.")
    return description


def refuse_code(folder: Path, what: str) -> None:
    """CheckpointError where what save_pretrained wrote names code of others, to be fetched by its name."""
    for name in ("config.json", "adapter_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        # transformers 5 takes kernels by the names of repositories, and an adapter's base model from anywhere.
        names_code = name == "adapter_config.json"
        for key, value in read_mapping(file, what).items():
            if key.endswith("_implementation") and "/" in str(value):
                names_code = True
        if names_code:
            raise CheckpointError(
                f"{what} in {folder} has a {name} that names code or weights elsewhere. Take `attn_implementation` "
                "out of config.json; merge an adapter with its model and save that."
            )


def check_size(folder: Path, build: Callable[[], nn.Module]) -> None:
    """ValueError where the model that is built has far more values than are stored, before it gets memory for them."""
    num_stored = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  no mapping: it has nothing else to go over
                num_stored += math.prod(tensors.get_slice(name).get_shape())
    with torch.device("meta"):
        num_values = sum(parameter.numel() for parameter in build().parameters())
    # Some are not stored, such as those that are used for training alone.
    if num_values > 2 * num_stored + SPARE_VALUES:
        raise ValueError(f"its model has {num_values:,} values, and {num_stored:,} are stored")


def open_pretrained(folder: Path, auto_class: Any) -> nn.Module:
    """The model of a folder by a class of `transformers`, as save_pretrained wrote it, in fp32.

    Nothing is fetched and no code of the folder is run: without `trust_remote_code` it makes transformers ask on a
    terminal whether to. Weights that are pickles are programs too. MissingWeightsError where the model has weights that
    are not stored; otherwise raises what transformers does, whose classes stumble over odd values each in its own way.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    check_size(folder, lambda: auto_class.from_config(config, trust_remote_code=False))
    model, report = auto_class.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
    )
    # transformers draws them at random, and says so in a warning alone.
    for name in sorted(report["missing_keys"]):
        # It stands for masked frames, in training alone.
        if not name.endswith("masked_spec_embed"):
            raise MissingWeightsError(name)
    return model
