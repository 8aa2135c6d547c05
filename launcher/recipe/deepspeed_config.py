"""The JSON files that tell DeepSpeed how to spread a training."""

import json
from pathlib import Path
from typing import Any

from launcher.errors import ConfigError
from launcher.recipe.text import nearest

DEEPSPEED_CONFIGS = Path(__file__).parents[2] / "ds_configs"


def find_deepspeed_config(name: str) -> Path:
    """Return the JSON file of a DeepSpeed configuration given by its name in ds_configs/ or by a path."""
    if name.endswith(".json") or "/" in name:
        path = Path(name).expanduser().absolute()
        if not path.is_file():
            raise ConfigError(f"The DeepSpeed configuration {path} does not exist.")
        return path
    path = DEEPSPEED_CONFIGS / f"{name}.json"
    if not path.is_file():
        known = sorted(file.stem for file in DEEPSPEED_CONFIGS.glob("*.json"))
        raise ConfigError(f"There is no DeepSpeed configuration {name!r}{nearest(name, known)}")
    return path


def read_deepspeed_config(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON file; ConfigError with line and column when it is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"The DeepSpeed configuration {path} is not readable as JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"The DeepSpeed configuration {path} holds no JSON object.")
    return values


def zero_stage(values: dict[str, Any]) -> int:
    """Return the ZeRO stage of a configuration; DeepSpeed takes one without for stage 0."""
    return values.get("zero_optimization", {}).get("stage", 0)
