"""The table every run ends in: each model beside the teacher it was distilled from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launcher.report.formatting import MISSING, count, percent
from launcher.report.run_data import read_models
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
    search: str | None = None

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of HEADINGS and, last, the search."""
        return (
            self.model,
            count(self.encoder_parameters),
            percent(self.share),
            count(self.effective_encoder_parameters),
            count(self.activated_encoder_parameters),
            percent(self.cer, 2),
            percent(self.wer, 2),
            MISSING if self.real_time_factor is None else f"{self.real_time_factor:.3f}",
            MISSING if self.search is None else self.search.replace("_", " "),
        )


@dataclass(frozen=True)
class ResultsTable:
    """All models of a run; `str()` gives an aligned text, `lines()` what a table widget needs. `others` are the same
    models on the same split, searched in other ways."""

    rows: tuple[ResultRow, ...]
    others: tuple[ResultRow, ...] = ()

    @property
    def headings(self) -> tuple[str, ...]:
        """The columns; that of the search is left out where all results are greedy."""
        searches = {row.search for row in (*self.rows, *self.others)}
        return HEADINGS if searches <= {None, "greedy"} else (*HEADINGS, "search")

    def lines(self) -> list[tuple[ResultRow, tuple[str, ...]]]:
        """Every row with its cells, in the order of the headings."""
        return [(row, row.cells()[: len(self.headings)]) for row in (*self.rows, *self.others)]

    def teacher(self) -> ResultRow | None:
        return next((row for row in self.rows if row.is_teacher), None)

    def __str__(self) -> str:
        lines = [self.headings, *(cells for _, cells in self.lines())]
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
    rows, others = [], []
    for name, model in models.items():
        split = _split(model)
        rows.append(_row(name, model, split, name == teacher, of_teacher))
        again = [key for key in model if split and key.startswith(f"{split}/")]
        others += [_row(name, model, key, name == teacher, of_teacher) for key in again]
    return ResultsTable(tuple(rows), tuple(others))


def _teacher(models: dict[str, dict[str, Any]], recipe: dict[str, Any]) -> str | None:
    stages = [stage for stage in recipe.get("stages") or [] if isinstance(stage, dict)]
    distilled = [stage for stage in stages if stage.get("kind") == "distill"]
    listed = [teacher.get("model") for stage in distilled for teacher in stage.get("teachers") or ()]
    named = [*(stage.get("teacher") for stage in distilled), *listed]
    return next((name for name in [*named, "teacher"] if name in models), None)


def _split(model: dict[str, Any]) -> str | None:
    splits = [key for key, value in model.items() if isinstance(value, dict) and "cer" in value]
    return "test" if "test" in splits else next(iter(splits), None)


def _row(name: str, model: dict[str, Any], split: str | None, is_teacher: bool, of_teacher: int | None) -> ResultRow:
    scores = model[split] if split else {}
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
        search=(scores.get("search") or {}).get("kind"),
    )
