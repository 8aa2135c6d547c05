"""How large each model is and what it computes: the compact table beside the results."""

from dataclasses import dataclass
from typing import Any

from launcher.report.formatting import count, giga

HEADINGS = (
    "model",
    "parameters",
    "encoder, unique",
    "encoder, effective",
    "encoder, activated",
    "GFLOPs per s of audio, encoder",
    "GFLOPs per s of audio, whole model",
)


@dataclass(frozen=True)
class SizeRow:
    """One model: parameters as counts, operations per second of audio. None stands for what was not counted."""

    model: str
    parameters: int | None
    unique: int | None
    effective: int | None
    activated: int | None
    encoder_operations_per_s: float | None
    operations_per_s: float | None

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of HEADINGS."""
        sizes = (self.parameters, self.unique, self.effective, self.activated)
        rates = (self.encoder_operations_per_s, self.operations_per_s)
        return (self.model, *map(count, sizes), *map(giga, rates))


def tabulate_sizes(models: dict[str, dict[str, Any]]) -> list[SizeRow]:
    """One row per model of results.json."""
    return [
        SizeRow(
            model=name,
            parameters=found.get("parameters"),
            unique=found.get("encoder_parameters"),
            effective=found.get("effective_encoder_parameters"),
            activated=found.get("activated_encoder_parameters"),
            encoder_operations_per_s=found.get("encoder_operations_per_s"),
            operations_per_s=found.get("operations_per_s"),
        )
        for name, found in models.items()
    ]
