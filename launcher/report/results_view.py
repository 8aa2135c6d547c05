"""The table of results as the page shows it: the fewest errors first, with intervals, beside the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.formatting import MISSING, count, percent
from launcher.inference.bootstrap import Interval
from launcher.report.intervals import ModelIntervals, format_ends, format_points, verdict
from launcher.report.model_colours import ModelLooks
from launcher.report.results import ResultRow, ResultsTable


@dataclass(frozen=True)
class Cell:
    """A cell with its heading; `note` stands smaller below it, `share` draws a bar."""

    heading: str
    text: str
    note: str = ""
    share: float | None = None
    is_key: bool = False


@dataclass(frozen=True)
class Line:
    """A row of the table; `colour` is the number of the model's colour in the page."""

    model: str
    colour: int
    note: str
    cells: tuple[Cell, ...]


def result_lines(table: ResultsTable, intervals: dict[str, ModelIntervals], looks: ModelLooks) -> list[Line]:
    """The models of a run, those with the fewest errors first and those that were not measured last."""
    rows = sorted(table.rows, key=lambda row: (row.cer is None, row.cer or 0.0))
    has_teacher = table.teacher() is not None
    has_search = "search" in table.headings
    lines = []
    for row in rows:
        cells = _cells(row, intervals.get(row.model), has_teacher, has_search)
        note = ""
        if row.is_teacher:
            note = "the teacher"
        lines.append(Line(row.model, looks.number(row.model), note, tuple(cells)))
    return lines


def _cells(row: ResultRow, measured: ModelIntervals | None, has_teacher: bool, has_search: bool) -> list[Cell]:
    cer_ends = ""
    wer_ends = ""
    difference = MISSING
    shown = ""
    if measured is not None:
        cer_ends = format_ends(measured.cer)
        wer_ends = format_ends(measured.wer)
        if measured.difference is not None:
            difference = format_points(measured.difference)
            shown = verdict(measured.difference)
    real_time_factor = MISSING
    if row.real_time_factor is not None:
        real_time_factor = f"{row.real_time_factor:.3f}"
    cells = [Cell("CER", percent(row.cer, 2), cer_ends, is_key=True), Cell("WER", percent(row.wer, 2), wer_ends)]
    if has_teacher:
        cells.append(Cell("CER against the teacher's, points", difference, shown))
    cells.append(Cell("encoder parameters", count(row.encoder_parameters)))
    if has_teacher:
        cells.append(Cell("of the teacher's", percent(row.share), share=row.share))
    cells.append(Cell("effective", count(row.effective_encoder_parameters)))
    cells.append(Cell("activated", count(row.activated_encoder_parameters)))
    cells.append(Cell("real-time factor", real_time_factor))
    if has_search:
        search = MISSING
        if row.search is not None:
            search = row.search.replace("_", " ")
        cells.append(Cell("search", search))
    return cells


def evidence(table: ResultsTable, intervals: dict[str, ModelIntervals]) -> str:
    """What the intervals say of the best student and its teacher, in a sentence; empty where they say nothing."""
    teacher = table.teacher()
    students = [row for row in table.rows if row.cer is not None and not row.is_teacher]
    if teacher is None or not students:
        return ""
    best = min(students, key=lambda row: row.cer or 0.0)
    measured = intervals.get(best.model)
    if measured is None or measured.difference is None:
        return ""
    difference = measured.difference
    ends = f"{100 * difference.low:+.2f} to {100 * difference.high:+.2f} points (95% interval over utterances)"
    if difference.low > 0:
        conclusion = f"{best.model} makes more errors than {teacher.model}"
    elif difference.high < 0:
        conclusion = f"{best.model} makes fewer errors than {teacher.model}"
    else:
        conclusion = f"no difference between {best.model} and {teacher.model} is shown"
    return f"{conclusion[:1].upper()}{conclusion[1:]}: {ends}, measured on the same {best.utterances} utterances."


def other_rows(rows: Sequence[ResultRow]) -> list[tuple[str, ...]]:
    """The same models on the sets of single corpora, or searched in other ways: name, CER, WER, search."""
    shown = []
    for row in sorted(rows, key=lambda row: (row.model, row.cer or 0.0)):
        search = MISSING
        if row.search is not None:
            search = row.search.replace("_", " ")
        shown.append((row.model, str(row.split or MISSING), percent(row.cer, 2), percent(row.wer, 2), search))
    return shown


def interval_of(intervals: dict[str, ModelIntervals], model: str) -> Interval | None:
    """The interval of a model's character error rate."""
    measured = intervals.get(model)
    if measured is None:
        return None
    return measured.cer
