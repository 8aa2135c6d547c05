"""Which average of its weights a stage ends with, in place of those of its last step.

Averages of the last checkpoints, or of those with the lowest error rates, are made when the training is over (Vaswani
et al., 2017). A running average is kept while it goes on (Polyak and Juditsky, 1992).
"""

from typing import Literal

from pydantic import BaseModel, Field, model_validator


class AverageConfig(BaseModel, frozen=True, extra="forbid"):
    """Of what a finished model is the average."""

    kind: Literal["last", "best", "running"] = Field(
        description="last: the newest checkpoints; best: those with the lowest validation/cer; running: an exponential "
        "average over all updates"
    )
    checkpoints: int = Field(
        default=5, ge=2, le=1000, description="checkpoints that are averaged (last and best); that many are kept"
    )
    # 1 / (1 - decay) updates count: 0.999 is the last thousand.
    decay: float = Field(
        default=0.999, ge=0, lt=1, description="share of the running average that stays at an update (running)"
    )

    @model_validator(mode="after")
    def _keys_belong_to_the_kind(self) -> "AverageConfig":
        other = "checkpoints" if self.kind == "running" else "decay"
        if other in self.model_fields_set and getattr(self, other) != type(self).model_fields[other].default:
            raise ValueError(f"{other} is set, and an average of kind {self.kind} has none: leave it out")
        return self
