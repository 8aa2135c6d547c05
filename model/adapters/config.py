"""Which adapters an encoder has."""

from typing import Literal

from pydantic import BaseModel, Field, model_validator

Part = Literal["attention", "convolution", "feedforward"]
ALL_PARTS: tuple[Part, ...] = ("attention", "convolution", "feedforward")


class AdaptersConfig(BaseModel, frozen=True, extra="forbid"):
    kind: Literal["lora", "bottleneck"] = Field(
        description="lora: a product of two low-rank matrices beside linear layers; bottleneck: a narrow feed-forward "
        "layer beside each feed-forward layer or its experts"
    )
    scope: Literal["layer", "block"] = Field(
        default="layer", description="who owns the adapters: each layer, or each block with all layers that use it"
    )
    rank: int = Field(
        default=4, ge=1, le=65_536, description="inner width of each adapter: rank of a product, hidden units"
    )
    scale: float = Field(
        default=1.0, gt=0, le=1000, description="what the output of each adapter is multiplied by (alpha / rank)"
    )
    parts: tuple[Part, ...] = Field(
        default=ALL_PARTS, min_length=1, description="lora: the modules of a block whose linear layers get adapters"
    )

    @model_validator(mode="after")
    def _parts_belong_to_lora(self) -> "AdaptersConfig":
        if self.kind == "bottleneck" and set(self.parts) != set(ALL_PARTS):
            raise ValueError("parts is set, and bottlenecks stand beside feed-forward layers alone: leave it out")
        if len(set(self.parts)) != len(self.parts):
            raise ValueError(f"parts names one part twice: {', '.join(self.parts)}")
        return self
