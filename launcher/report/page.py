"""Puts the page together: `write_page` makes `report.html` from what a run folder holds at that moment."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launcher.monitoring.goodput import Goodput, measure_goodput
from launcher.report import figures, formatting
from launcher.report.figures import Drawing
from launcher.report.results import ResultRow, ResultsTable, tabulate
from launcher.report.run_data import RunData, StageData, read_run_data
from launcher.report.sizes import HEADINGS as SIZE_HEADINGS
from launcher.report.sizes import tabulate_sizes
from launcher.report.text_diff import differences
from launcher.run_folder import RunFolder, write_text

MOST_EXAMPLES = 12
MOST_EVENTS = 60


def write_page(run_dir: Path) -> Path:
    """Writes the page and returns its path; `launcher.report.write_report` is the way in."""
    evidence = read_run_data(run_dir)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": formatting.duration, "percent": formatting.percent}
    page = environment.get_template("template.html").render(_content(evidence))
    path = RunFolder(run_dir).report_file
    write_text(path, page)
    return path


def _content(evidence: RunData) -> dict[str, Any]:
    table = tabulate(evidence.models, evidence.recipe)
    training = evidence.training_stages()
    with_experts = [stage for stage in training if stage.expert_layers()]
    return {
        "name": evidence.name,
        "written": time.strftime("%d %B %Y, %H:%M %Z"),
        "finding": headline(table, evidence.stages),
        "gaps": evidence.gaps,
        "stages": [_stage_summary(stage) for stage in evidence.stages],
        "table": table,
        "size_headings": SIZE_HEADINGS,
        "size_rows": tabulate_sizes(evidence.models),
        "sizes": figures.draw_sizes(table),
        "learning": [(stage.name, _learning(stage)) for stage in training if stage.rows],
        "experts": _drawings(with_experts, figures.draw_load, figures.draw_entropy),
        "schedule": _drawings(training, figures.draw_schedule),
        "speed": _drawings(training, figures.draw_speed),
        "times": [spent for stage in training if (spent := time_spent(evidence, stage)) is not None],
        "silent": [stage.name for stage in training if not stage.rows],
        "expected_experts": _expects_experts(evidence),
        "examples": _examples(evidence),
        "events": [_event(event) for event in evidence.events[-MOST_EVENTS:]],
        "num_events": len(evidence.events),
        "recipe_text": evidence.recipe_text,
    }


def _drawings(stages: list[StageData], *draw: Callable[[StageData], Drawing | None]) -> list[Drawing]:
    return [drawing for stage in stages for one in draw if (drawing := one(stage)) is not None]


def _learning(stage: StageData) -> list[Drawing]:
    return _drawings(
        [stage], figures.draw_loss, figures.draw_parts, figures.draw_validation, figures.draw_masked_accuracy
    )


def headline(table: ResultsTable, stages: list[StageData]) -> str:
    """The finding of the run in a sentence or two; without results, how far it has come."""
    measured = [row for row in table.rows if row.cer is not None]
    teacher = table.teacher()
    students = sorted((row for row in measured if not row.is_teacher), key=lambda row: row.cer or 0.0)
    if students and teacher in measured and students[0].share is not None:
        return _comparison(students[0], teacher)
    if measured:
        best = min(measured, key=lambda row: row.cer or 0.0)
        return f"{_name(best)} gets {formatting.percent(best.cer)} of the {best.split} characters wrong."
    done = sum(stage.status == "done" for stage in stages)
    return f"No model has been evaluated yet; {done} of {len(stages)} stages are done."


def _comparison(student: ResultRow, teacher: ResultRow) -> str:
    assert student.cer is not None
    assert teacher.cer is not None
    points = 100 * (student.cer - teacher.cer)
    if abs(points) < 0.05:
        verdict = f"as many as {teacher.model}"
    else:
        direction = "more" if points > 0 else "fewer"
        verdict = f"{abs(points):.1f} points {direction} than {teacher.model}'s {formatting.percent(teacher.cer)}"
    return (
        f"With {formatting.percent(student.share, 0)} of the encoder parameters of {teacher.model}, "
        f"{student.model} gets {formatting.percent(student.cer)} of the {student.split} characters wrong, "
        f"{verdict}."
    )


def _name(row: ResultRow) -> str:
    return row.model[:1].upper() + row.model[1:]


def _stage_summary(stage: StageData) -> dict[str, str]:
    details = []
    if stage.rows:
        planned = f" of {stage.planned_steps:,}" if stage.planned_steps else ""
        details.append(f"step {stage.last_step:,}{planned}".replace(",", "\u202f"))
    if stage.restart_steps:
        restarts = len(stage.restart_steps)
        details.append(f"{restarts} restart{'s' if restarts > 1 else ''}")
    return {"name": stage.name, "kind": stage.kind, "status": stage.status, "details": ", ".join(details)}


def _expects_experts(evidence: RunData) -> bool:
    models = [stage.get("model") or {} for stage in evidence.recipe.get("stages") or [] if isinstance(stage, dict)]
    return any((model.get("encoder") or {}).get("experts") for model in models)


@dataclass(frozen=True)
class TimeSpent:
    """Where the wall time of a stage went."""

    stage: str
    goodput: Goodput

    @property
    def total_s(self) -> float:
        return self.goodput.wall_s

    def parts(self) -> list[tuple[int, str, float, str]]:
        """For each part that took time its colour, name, share of the whole and duration as text."""
        spent = self.goodput
        named = {
            "useful steps": spent.useful,
            "waiting for data": spent.data_wait,
            "validation": spent.validation,
            "saving": spent.save,
            "start and finish": spent.start + spent.finish,
            "lost work and restarts": spent.lost + spent.restart,
            "other": spent.other,
        }
        total_s = self.total_s
        return [
            (colour, what, seconds / total_s, formatting.duration(seconds))
            for colour, (what, seconds) in enumerate(named.items())
            if seconds > 0.05
        ]


def time_spent(evidence: RunData, stage: StageData) -> TimeSpent | None:
    """How a stage's wall time divides; None before its processes have started."""
    goodput = measure_goodput(evidence.events, stage.rows, stage.name)
    return TimeSpent(stage.name, goodput) if goodput and goodput.wall_s > 0 else None


def _examples(evidence: RunData) -> list[dict[str, Any]]:
    """The first examples the evaluation kept, each with what every model made of it."""
    by_key: dict[str, dict[str, Any]] = {}
    for model, examples in evidence.examples.items():
        for example in examples:
            key, reference = example.get("key", ""), example.get("reference", "")
            entry = by_key.setdefault(key, {"key": key, "reference": reference, "hypotheses": []})
            pieces, errors, units = differences(reference, example.get("hypothesis", ""))
            entry["hypotheses"].append({"model": model, "pieces": pieces, "errors": errors, "units": units})
    return list(by_key.values())[:MOST_EXAMPLES]


def _event(event: dict[str, Any]) -> dict[str, str]:
    moment = event.get("time")
    details = ((key, value) for key, value in event.items() if key not in ("time", "event", "stage"))
    return {
        "time": time.strftime("%d %b %H:%M:%S", time.localtime(moment)) if isinstance(moment, int | float) else "",
        "stage": str(event.get("stage", "")),
        "what": str(event.get("event", "?")).replace("_", " "),
        "details": _listing(details),
    }


def _listing(pairs: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in pairs if value is not None)
