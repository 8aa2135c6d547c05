"""How large each model is and what it computes: the compact table beside the results."""

from dataclasses import dataclass
from typing import Any

from launcher.formatting import count, giga

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
        return (
            self.model,
            count(self.parameters),
            count(self.unique),
            count(self.effective),
            count(self.activated),
            giga(self.encoder_operations_per_s),
            giga(self.operations_per_s),
        )


def tabulate_sizes(models: dict[str, dict[str, Any]]) -> list[SizeRow]:
    """One row per model of results.json."""
    rows = []
    for name, model in models.items():
        row = SizeRow(
            model=name,
            parameters=model.get("parameters"),
            unique=model.get("encoder_parameters"),
            effective=model.get("effective_encoder_parameters"),
            activated=model.get("activated_encoder_parameters"),
            encoder_operations_per_s=model.get("encoder_operations_per_s"),
            operations_per_s=model.get("operations_per_s"),
        )
        rows.append(row)
    return rows
