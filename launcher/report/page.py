"""Puts the page together: `write_page` makes `report.html` from what a run folder holds at that moment."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import formatting
from launcher.monitoring.goodput import Goodput, measure_goodput
from launcher.report import figures
from launcher.report.environment import page_environment
from launcher.report.figures import Drawing
from launcher.report.results import ResultsTable, tabulate
from launcher.report.run_data import RunData, StageData, read_run_data
from launcher.report.sizes import HEADINGS as SIZE_HEADINGS
from launcher.report.sizes import tabulate_sizes
from launcher.report.text_diff import Piece, differences
from launcher.run_folder import RunFolder, write_text

# More would make a page of text of a report that is to be read at a glance.
MAX_EXAMPLES = 12
# A run of many restarts records hundreds; the last say in which state it is.
MAX_EVENTS = 60
# A lost shard makes thousands; the first say which shard it is.
MAX_QUARANTINED = 50

Draw = Callable[[StageData], Drawing | None]
LEARNING: Sequence[Draw] = (
    figures.draw_loss,
    figures.draw_parts,
    figures.draw_validation,
    figures.draw_masked_accuracy,
)


@dataclass(frozen=True)
class TimePart:
    """A part of a stage's wall time: the number of its colour in the page, its share of the whole."""

    colour: int
    name: str
    share: float
    seconds: float


@dataclass(frozen=True)
class TimeSpent:
    """Where the wall time of a stage went."""

    stage: str
    goodput: Goodput

    @property
    def total_s(self) -> float:
        return self.goodput.wall_s

    def parts(self) -> list[TimePart]:
        """The parts that took time, in the order in which they are shown."""
        goodput = self.goodput
        # The place of each is the number of its colour in the template (part-0 to part-6).
        seconds_by_name = {
            "useful steps": goodput.useful,
            "waiting for data": goodput.data_wait,
            "validation": goodput.validation,
            "saving": goodput.save,
            "start and finish": goodput.start + goodput.finish,
            "lost work and restarts": goodput.lost + goodput.restart,
            "other": goodput.other,
        }
        parts = []
        for colour, (name, seconds) in enumerate(seconds_by_name.items()):
            # Less than this is written as 0.0 s.
            if seconds > 0.05:
                parts.append(TimePart(colour, name, seconds / self.total_s, seconds))
        return parts


@dataclass(frozen=True)
class Hypothesis:
    """What a model made of an example, aligned with the reference."""

    model: str
    pieces: list[Piece]
    errors: int
    units: int


@dataclass(frozen=True)
class Example:
    """An utterance with the hypotheses of all models that were evaluated on it."""

    key: str
    reference: str
    hypotheses: list[Hypothesis]


def write_page(run_dir: Path) -> Path:
    """Writes the page and returns its path; `launcher.report.write_report` is the way in."""
    run_data = read_run_data(run_dir)
    environment = page_environment(Path(__file__).parent)
    page = environment.get_template("template.html").render(_content(run_data))
    path = RunFolder(run_dir).report_file
    write_text(path, page)
    return path


def _content(run_data: RunData) -> dict[str, Any]:
    """The variables of the template."""
    table = tabulate(run_data.models, run_data.recipe)
    training = run_data.training_stages()

    times = []
    learning = []
    silent = []
    with_experts = []
    for stage in training:
        spent = time_spent(run_data, stage)
        if spent is not None:
            times.append(spent)
        if stage.rows:
            learning.append((stage.name, _draw_all([stage], LEARNING)))
        else:
            silent.append(stage.name)
        if stage.expert_layers():
            with_experts.append(stage)

    # The first examples that the evaluation kept, each with the hypotheses of all models.
    examples: dict[str, Example] = {}
    for model, model_examples in run_data.examples.items():
        for entry in model_examples:
            key = entry.get("key", "")
            reference = entry.get("reference", "")
            example = examples.setdefault(key, Example(key, reference, hypotheses=[]))
            pieces, errors, units = differences(reference, entry.get("hypothesis", ""))
            example.hypotheses.append(Hypothesis(model, pieces, errors, units))

    return {
        "name": run_data.name,
        "written": time.strftime("%d %B %Y, %H:%M %Z"),
        "finding": headline(table, run_data.stages),
        "gaps": run_data.gaps,
        "stages": [_summarize_stage(stage) for stage in run_data.stages],
        "table": table,
        "size_headings": SIZE_HEADINGS,
        "size_rows": tabulate_sizes(run_data.models),
        "sizes": figures.draw_sizes(table),
        "learning": learning,
        "experts": _draw_all(with_experts, [figures.draw_load, figures.draw_entropy]),
        "schedule": _draw_all(training, [figures.draw_schedule]),
        "speed": _draw_all(training, [figures.draw_speed]),
        "times": times,
        "silent": silent,
        "expected_experts": run_data.plans_experts(),
        "examples": list(examples.values())[:MAX_EXAMPLES],
        "events": [_describe_event(event) for event in run_data.events[-MAX_EVENTS:]],
        "quarantined": run_data.quarantined[:MAX_QUARANTINED],
        "num_quarantined": len(run_data.quarantined),
        "num_events": len(run_data.events),
        "recipe_text": run_data.recipe_text,
    }


def _draw_all(stages: Sequence[StageData], draws: Sequence[Draw]) -> list[Drawing]:
    """Every figure that has something to show, stage by stage."""
    drawings = []
    for stage in stages:
        for draw in draws:
            drawing = draw(stage)
            if drawing is not None:
                drawings.append(drawing)
    return drawings


def headline(table: ResultsTable, stages: list[StageData]) -> str:
    """The finding of the run in a sentence or two; without results, how far it has come."""
    measured = [row for row in table.rows if row.cer is not None]
    if not measured:
        num_done = sum(stage.status == "done" for stage in stages)
        return f"No model has been evaluated yet; {num_done} of {len(stages)} stages are done."

    by_error_rate = sorted(measured, key=lambda row: row.cer or 0.0)
    teacher = table.teacher()
    students = [row for row in by_error_rate if not row.is_teacher]
    if students and teacher in measured and students[0].share is not None:
        student = students[0]
        assert student.cer is not None
        assert teacher.cer is not None
        points = 100 * (student.cer - teacher.cer)
        direction = "more"
        if points < 0:
            direction = "fewer"
        verdict = f"{abs(points):.1f} points {direction} than {teacher.model}'s {formatting.percent(teacher.cer)}"
        # What would be written as 0.0 points.
        if abs(points) < 0.05:
            verdict = f"as many as {teacher.model}"
        return (
            f"With {formatting.percent(student.share, 0)} of the encoder parameters of {teacher.model}, "
            f"{student.model} gets {formatting.percent(student.cer)} of the {student.split} characters wrong, "
            f"{verdict}."
        )
    best = by_error_rate[0]
    name = best.model[:1].upper() + best.model[1:]
    return f"{name} gets {formatting.percent(best.cer)} of the {best.split} characters wrong."


def _summarize_stage(stage: StageData) -> dict[str, str]:
    details = []
    if stage.rows:
        progress = f"step {stage.last_step:,}"
        if stage.planned_steps:
            progress += f" of {stage.planned_steps:,}"
        # As on the axes of the figures.
        details.append(progress.replace(",", "\u202f"))
    num_restarts = len(stage.restart_steps)
    if num_restarts == 1:
        details.append("1 restart")
    elif num_restarts > 1:
        details.append(f"{num_restarts} restarts")
    return {"name": stage.name, "kind": stage.kind, "status": stage.status, "details": ", ".join(details)}


def time_spent(run_data: RunData, stage: StageData) -> TimeSpent | None:
    """How a stage's wall time divides; None before its processes have started."""
    goodput = measure_goodput(run_data.events, stage.rows, stage.name)
    if goodput is None or goodput.wall_s <= 0:
        return None
    return TimeSpent(stage.name, goodput)


def _describe_event(event: dict[str, Any]) -> dict[str, str]:
    when = ""
    moment = event.get("time")
    if isinstance(moment, int | float):
        when = time.strftime("%d %b %H:%M:%S", time.localtime(moment))
    # Every kind of event has its own keys.
    details = []
    for key, value in event.items():
        if key not in ("time", "event", "stage") and value is not None:
            details.append(f"{key.replace('_', ' ')}: {value}")
    return {
        "time": when,
        "stage": str(event.get("stage", "")),
        "what": str(event.get("event", "?")).replace("_", " "),
        "details": ", ".join(details),
    }
