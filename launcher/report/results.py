"""The table every run ends in: each model beside the teacher it was distilled from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launcher.report.evidence import read_models
from launcher.report.wording import MISSING, count, percent
from launcher.run_folder import RunFolder

HEADINGS = (
    "model",
    "encoder parameters",
    "of the teacher's",
    "effective",
    "activated",
    "CER",
    "WER",
    "real-time factor",
)


@dataclass(frozen=True)
class ResultRow:
    """One model: parameters as counts, error rates and the share of the teacher's encoder as fractions.

    None stands for what has not been measured. `is_teacher`: the model that the shares refer to.
    """

    model: str
    is_teacher: bool
    parameters: int | None
    encoder_parameters: int | None
    share: float | None
    effective_encoder_parameters: int | None
    activated_encoder_parameters: int | None
    split: str | None
    cer: float | None
    wer: float | None
    real_time_factor: float | None
    utterances: int | None

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of HEADINGS."""
        return (
            self.model,
            count(self.encoder_parameters),
            percent(self.share),
            count(self.effective_encoder_parameters),
            count(self.activated_encoder_parameters),
            percent(self.cer, 2),
            percent(self.wer, 2),
            MISSING if self.real_time_factor is None else f"{self.real_time_factor:.3f}",
        )


@dataclass(frozen=True)
class ResultsTable:
    """All models of a run; `str()` gives an aligned text, `cells()` of the rows what a table widget needs."""

    rows: tuple[ResultRow, ...]

    @property
    def headings(self) -> tuple[str, ...]:
        return HEADINGS

    def teacher(self) -> ResultRow | None:
        return next((row for row in self.rows if row.is_teacher), None)

    def __str__(self) -> str:
        lines = [self.headings, *(row.cells() for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headings))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )


def results_table(run_dir: Path) -> ResultsTable:
    """The table of a run folder; without rows while nothing has been evaluated."""
    path = RunFolder(run_dir).recipe_file
    recipe = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    return tabulate(read_models(run_dir), recipe)


def tabulate(models: dict[str, dict[str, Any]], recipe: dict[str, Any]) -> ResultsTable:
    """Sets each model beside the teacher: the one the recipe distils from, else the one of that name."""
    teacher = _teacher(models, recipe)
    of_teacher = models[teacher].get("encoder_parameters") if teacher else None
    return ResultsTable(tuple(_row(name, model, name == teacher, of_teacher) for name, model in models.items()))


def _teacher(models: dict[str, dict[str, Any]], recipe: dict[str, Any]) -> str | None:
    stages = [stage for stage in recipe.get("stages") or [] if isinstance(stage, dict)]
    named = [stage.get("teacher") for stage in stages if stage.get("kind") == "distill"]
    return next((name for name in [*named, "teacher"] if name in models), None)


def _row(name: str, model: dict[str, Any], is_teacher: bool, of_teacher: int | None) -> ResultRow:
    splits = {key: value for key, value in model.items() if isinstance(value, dict) and "cer" in value}
    split = "test" if "test" in splits else next(iter(splits), None)
    scores = splits[split] if split else {}
    encoder = model.get("encoder_parameters")
    return ResultRow(
        model=name,
        is_teacher=is_teacher,
        parameters=model.get("parameters"),
        encoder_parameters=encoder,
        share=encoder / of_teacher if encoder is not None and of_teacher else None,
        effective_encoder_parameters=model.get("effective_encoder_parameters"),
        activated_encoder_parameters=model.get("activated_encoder_parameters"),
        split=split,
        cer=scores.get("cer"),
        wer=scores.get("wer"),
        real_time_factor=scores.get("rtf"),
        utterances=scores.get("utterances"),
    )
