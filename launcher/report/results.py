"""The table every run ends in: each model beside the teacher it was distilled from."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.files import read_bounded
from launcher.bounded_yaml import MAX_CHARACTERS, load_yaml
from launcher.formatting import MISSING, count, percent
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
        real_time_factor = MISSING
        if self.real_time_factor is not None:
            real_time_factor = f"{self.real_time_factor:.3f}"
        search = MISSING
        if self.search is not None:
            search = self.search.replace("_", " ")
        return (
            self.model,
            count(self.encoder_parameters),
            percent(self.share),
            count(self.effective_encoder_parameters),
            count(self.activated_encoder_parameters),
            percent(self.cer, 2),
            percent(self.wer, 2),
            real_time_factor,
            search,
        )


@dataclass(frozen=True)
class ResultsTable:
    """All models of a run; `str()` gives an aligned text, `lines()` what a table widget needs. `others` are the same
    models on the same split, searched in other ways, or on the set of one corpus of a mixture."""

    rows: tuple[ResultRow, ...]
    others: tuple[ResultRow, ...] = ()

    @property
    def headings(self) -> tuple[str, ...]:
        """The columns; that of the search is shown only where a result is not greedy."""
        for row in (*self.rows, *self.others):
            if row.search not in (None, "greedy"):
                return (*HEADINGS, "search")
        return HEADINGS

    def lines(self) -> list[tuple[ResultRow, tuple[str, ...]]]:
        """Every row with its cells, in the order of the headings."""
        num_columns = len(self.headings)
        return [(row, row.cells()[:num_columns]) for row in (*self.rows, *self.others)]

    def teacher(self) -> ResultRow | None:
        """The row that the shares refer to; None where the teacher has not been evaluated."""
        for row in self.rows:
            if row.is_teacher:
                return row
        return None

    def __str__(self) -> str:
        lines = [self.headings]
        for _, cells in self.lines():
            lines.append(cells)
        widths = []
        for column in zip(*lines, strict=True):
            widths.append(max(map(len, column)))

        # Names are aligned at their beginning, numbers at their end.
        padded_lines = []
        for name, *numbers in lines:
            cells = [name.ljust(widths[0])]
            for number, width in zip(numbers, widths[1:], strict=True):
                cells.append(number.rjust(width))
            padded_lines.append("  ".join(cells))
        return "\n".join(padded_lines)


def results_table(run_dir: Path) -> ResultsTable:
    """The table of a run folder; without rows while nothing has been evaluated."""
    recipe_file = RunFolder(run_dir).recipe_file
    recipe = {}
    # The results are shown whatever became of the recipe; it only says which model is the teacher.
    with suppress(OSError, ValueError, RecursionError, yaml.YAMLError):
        content = load_yaml(read_bounded(recipe_file, 4 * MAX_CHARACTERS).decode("utf-8"))
        if isinstance(content, dict):
            recipe = content
    return tabulate(read_models(run_dir), recipe)


def tabulate(models: dict[str, dict[str, Any]], recipe: dict[str, Any]) -> ResultsTable:
    """Sets each model beside the teacher: the one the recipe distils from, else the one of that name."""
    teacher = _teacher(models, recipe)
    teacher_parameters = None
    if teacher is not None:
        teacher_parameters = models[teacher].get("encoder_parameters")

    rows = []
    others = []
    for name, model in models.items():
        split = _split(model)
        is_teacher = name == teacher
        rows.append(_row(name, model, split, is_teacher, teacher_parameters))
        if split is None:
            continue
        # Of a mixture, the set of each corpus; the row above is of all of them.
        for label, scores in model[split].get("sets", {}).items():
            row_name = f"{name} on {label}"
            others.append(_row(row_name, {**model, split: scores}, split, is_teacher, teacher_parameters))
        # A later evaluation of the same split stands under SPLIT/EVALUATION.
        for key in model:
            if key.startswith(f"{split}/"):
                others.append(_row(name, model, key, is_teacher, teacher_parameters))
    return ResultsTable(tuple(rows), tuple(others))


def _teacher(models: dict[str, dict[str, Any]], recipe: dict[str, Any]) -> str | None:
    """The first evaluated teacher that a distillation names; a model of the name "teacher" where none is."""
    single_teachers = []
    listed_teachers = []
    for stage in recipe.get("stages") or []:
        # The recipe is read as it stands, so that a broken one does not keep the results from being shown.
        if not isinstance(stage, dict) or stage.get("kind") != "distill":
            continue
        single_teachers.append(stage.get("teacher"))
        for teacher in stage.get("teachers") or ():
            listed_teachers.append(teacher.get("model"))

    # The shares refer to one model; of several teachers that is the first of those that were evaluated.
    for name in [*single_teachers, *listed_teachers, "teacher"]:
        if name in models:
            return name
    return None


def _split(model: dict[str, Any]) -> str | None:
    """The split that a model is shown on: "test" where it was evaluated on it, else the first."""
    splits = []
    for key, value in model.items():
        if isinstance(value, dict) and "cer" in value:
            splits.append(key)
    if "test" in splits:
        return "test"
    if splits:
        return splits[0]
    return None


def _row(
    name: str, model: dict[str, Any], split: str | None, is_teacher: bool, teacher_parameters: int | None
) -> ResultRow:
    scores: dict[str, Any] = {}
    if split is not None:
        scores = model[split]
    search = scores.get("search") or {}
    encoder_parameters = model.get("encoder_parameters")
    share = None
    if encoder_parameters is not None and teacher_parameters:
        share = encoder_parameters / teacher_parameters
    return ResultRow(
        model=name,
        is_teacher=is_teacher,
        parameters=model.get("parameters"),
        encoder_parameters=encoder_parameters,
        share=share,
        effective_encoder_parameters=model.get("effective_encoder_parameters"),
        activated_encoder_parameters=model.get("activated_encoder_parameters"),
        split=split,
        cer=scores.get("cer"),
        wer=scores.get("wer"),
        real_time_factor=scores.get("rtf"),
        utterances=scores.get("utterances"),
        search=_search_name(search),
    )


def _search_name(search: dict[str, Any]) -> str | None:
    """The kind of a search, and what language model it has."""
    name = search.get("kind")
    language_model = search.get("language_model")
    if name is None or not isinstance(language_model, dict):
        return name
    if isinstance(language_model.get("order"), int):
        return f"{name}, {language_model['order']}-gram"
    return f"{name}, language model"
