"""What a stage of kind adapt trains of a finished model, and what the model may lose by it."""

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, Field, model_validator

from model.adapters import AdaptersConfig
from model.adapters.config import ALL_PARTS, Part

# The parts over the encoder, and who owns norms and routers in it.
OUTPUTS = ("ctc.", "decoder.", "reverse_decoder.", "transducer.")
NORMS_AND_ROUTERS = ("encoder.layers.", "encoder.groups.", "encoder.common.")
# The keys that say what adapters are like.
ADAPTER_KEYS = ("scope", "rank", "scale", "parts", "norms")
ROUTER_NAMES = ("router", "feedforward1_router")


class AdaptConfig(BaseModel, frozen=True, extra="forbid"):
    method: Literal["bottleneck", "lora", "norms", "everything"] = Field(
        description="what is trained: a bottleneck beside each feed-forward layer, low-rank matrices beside linear "
        "layers, the encoder's norms and routers alone, or all of the model"
    )
    scope: Literal["layer", "block"] = Field(
        default="layer", description="adapters for every layer, also where several use one block, or for every block"
    )
    rank: int = Field(default=4, ge=1, le=65_536, description="rank of a product (lora), hidden units of a bottleneck")
    scale: float = Field(default=1.0, gt=0, le=1000, description="what the output of an adapter is multiplied by")
    parts: tuple[Part, ...] = Field(
        default=ALL_PARTS, min_length=1, description="lora: the modules whose linear layers get adapters"
    )
    norms: bool = Field(default=False, description="beside adapters, the encoder's norms and routers are trained")
    outputs: bool = Field(
        default=False, description="the parts over the encoder (CTC output, decoders, transducer) are trained too"
    )
    max_trained_share: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="most values that may be trained, over those of the model without adapters; a stage that trains "
        "more is refused",
    )
    keep_split: str | None = Field(
        default=None,
        min_length=1,
        description="speech that the model is to go on recognising: a split of the corpus, or (with a slash) the "
        "folder or URL of a split's shards",
    )
    max_degradation: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="by how much the character error rate on keep_split may lie above the model's own, as a rate: 0.01 "
        "is one error more in a hundred characters",
    )

    @model_validator(mode="after")
    def _keys_belong_to_the_method(self) -> "AdaptConfig":
        fields = type(self).model_fields
        if self.method in ("norms", "everything"):
            for key in ADAPTER_KEYS:
                if getattr(self, key) != fields[key].default:
                    raise ValueError(f"{key} is set, and the method {self.method} has no adapters: leave it out")
        if self.method == "everything" and self.outputs:
            raise ValueError("outputs is set, and the method everything trains them anyway: leave it out")
        if self.keep_split is None and self.max_degradation != fields["max_degradation"].default:
            raise ValueError("max_degradation is set, and there is no keep_split to measure it on: name one")
        # What adapters refuse of each other is said before a model is built.
        _ = self.adapters
        return self

    @property
    def adapters(self) -> AdaptersConfig | None:
        """The adapters that the encoder gets; None where only tensors of its own are trained."""
        if self.method in ("norms", "everything"):
            return None
        return AdaptersConfig(kind=self.method, scope=self.scope, rank=self.rank, scale=self.scale, parts=self.parts)

    def trains(self, name: str) -> bool:
        """Whether the parameter of that dotted name is trained."""
        if self.method == "everything" or is_adapter(name):
            return True
        if self.outputs and name.startswith(OUTPUTS):
            return True
        if self.method != "norms" and not self.norms:
            return False
        # encoder.layers.0.attention_norm.weight, encoder.common.router.weight
        owners = name.split(".")[:-1]
        return name.startswith(NORMS_AND_ROUTERS) and (owners[-1].endswith("norm") or owners[-1] in ROUTER_NAMES)


def is_adapter(name: str) -> bool:
    """Whether a parameter is one of an adapter's."""
    return ".adapters." in name


def trained_share(sizes: Iterable[tuple[str, int, bool]]) -> tuple[int, float]:
    """How many values are trained, and their share of those that the model has without adapters; of each parameter the
    name, the number of values, and whether it is trained."""
    trained = 0
    own = 0
    for name, values, is_trained in sizes:
        if is_trained:
            trained += values
        if not is_adapter(name):
            own += values
    return trained, trained / own
