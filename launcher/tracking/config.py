"""The `tracking:` section of a recipe."""

import importlib.util
import sys
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from launcher.errors import ConfigError

# Projects, users and teams, as they stand in addresses of W&B: without `/ \\ # ? % :`, quotes and what acts.
NAME_PATTERN = r"^[\w][\w .,()@+-]{0,127}$"
# W&B takes tags of so many characters.
TAG_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]{1,64}$"
MAX_TAGS = 100


class WandbConfig(BaseModel, frozen=True, extra="forbid"):
    """How the stages of a run are shown in Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto",
        description="auto: online when an API key lies in the environment or in netrc, offline otherwise; "
        "the environment variable WANDB_MODE, where set, takes the place of this value",
    )
    project: str = Field(default="chorus", pattern=NAME_PATTERN, description="W&B project that receives the stages")
    entity: str | None = Field(
        default=None, pattern=NAME_PATTERN, description="W&B user or team; none: the default of the login"
    )
    tags: tuple[Annotated[str, Field(pattern=TAG_PATTERN)], ...] = Field(
        default=(), max_length=MAX_TAGS, description="tags that every stage of the run carries"
    )


class TrackingConfig(BaseModel, frozen=True, extra="forbid"):
    """Where the measurements of a run go besides `metrics.jsonl`, which is always written."""

    wandb: WandbConfig = Field(default=WandbConfig(), description="Weights & Biases")
    tensorboard: bool = Field(
        default=False, description="event files for TensorBoard in the folder tensorboard of every stage"
    )


def check_tracking(config: TrackingConfig) -> None:
    """Refuse (ConfigError) a backend whose package is not installed."""
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            f"tracking.tensorboard is true, but {sys.executable} has no package tensorboard. Install it with "
            "pip install 'chorus-asr[tensorboard]', or pass --set tracking.tensorboard=false."
        )
