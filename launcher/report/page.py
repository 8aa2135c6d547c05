"""Puts the page together: `write_page` makes `report.html` from what a run folder holds at that moment."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import formatting
from launcher.monitoring.goodput import Goodput, measure_goodput
from launcher.report import expert_figures, figures, model_figures
from launcher.report.analysis_data import Analysis, HardUtterance, TimedWord, read_analysis
from launcher.report.environment import page_environment
from launcher.report.figures import Drawing
from launcher.report.intervals import ModelErrors, ModelIntervals, measure_intervals, read_errors
from launcher.report.model_colours import Look, ModelLooks
from launcher.report.model_figures import Trade, TradePoint
from launcher.report.results import ResultsTable, tabulate
from launcher.report.results_view import evidence, interval_of, other_rows, result_lines
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

Draw = Callable[[StageData, Look], Drawing | None]
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
    """What a model made of an example, aligned with the reference; the words with their times where these are known."""

    model: str
    colour: int
    pieces: list[Piece]
    errors: int
    units: int
    words: list[TimedWord]


@dataclass(frozen=True)
class Example:
    """An utterance with the hypotheses of all models that were evaluated on it.

    `sound` is the recording as a `data:` URL, empty where there is none; `note` says of it what is to be said.
    """

    key: str
    reference: str
    hypotheses: list[Hypothesis]
    sound: str = ""
    note: str = ""


@dataclass(frozen=True)
class Examples:
    """The utterances of the page, and a sentence on which they are."""

    about: str
    examples: list[Example]


def write_page(run_dir: Path) -> Path:
    """Writes the page and returns its path; `launcher.report.write_report` is the way in."""
    run_data = read_run_data(run_dir)
    environment = page_environment(Path(__file__).parent)
    page = environment.get_template("template.html").render(_content(RunFolder(run_dir), run_data))
    path = RunFolder(run_dir).report_file
    write_text(path, page)
    return path


def _content(run: RunFolder, run_data: RunData) -> dict[str, Any]:
    """The variables of the template."""
    table = tabulate(run_data.models, run_data.recipe)
    training = run_data.training_stages()
    looks = ModelLooks([stage.name for stage in training] + [row.model for row in table.rows])
    errors = read_errors(run, run_data.recipe, table)
    intervals = measure_intervals(table, errors.models)
    analysis = read_analysis(run, run_data.evaluations(), [row.model for row in table.rows], run_data.gaps)

    times = []
    learning = []
    silent = []
    with_experts = []
    for stage in training:
        spent = time_spent(run_data, stage)
        if spent is not None:
            times.append(spent)
        if stage.rows:
            learning.append((stage.name, looks.number(stage.name), _draw_all([stage], LEARNING, looks)))
        else:
            silent.append(stage.name)
        if stage.expert_layers():
            with_experts.append(stage)
    overviews = []
    # Of a single stage its own figures say the same.
    if len(learning) > 1:
        for overview in model_figures.OVERVIEWS:
            overviews.append(model_figures.draw_overview(overview, training, looks))

    specialisation = []
    for use in analysis.experts:
        specialisation.append(expert_figures.draw_specialisation(use))
        specialisation += expert_figures.draw_choices(use)

    return {
        "name": run_data.name,
        "written": time.strftime("%d %B %Y, %H:%M %Z"),
        "finding": headline(table, run_data.stages),
        "evidence": evidence(table, intervals),
        # What is missing of the results is told where they are.
        "gaps": run_data.gaps,
        "interval_gaps": errors.gaps,
        "stages": [_summarize_stage(stage) for stage in run_data.stages],
        "table": table,
        "lines": result_lines(table, intervals, looks),
        "has_intervals": bool(intervals),
        "other_rows": other_rows(table.others),
        "size_headings": SIZE_HEADINGS,
        "size_rows": tabulate_sizes(run_data.models),
        "trades": draw_trades(run_data, table, intervals, looks),
        "overviews": [drawing for drawing in overviews if drawing is not None],
        "learning": learning,
        "experts": _draw_experts(with_experts, looks),
        "specialisation": [drawing for drawing in specialisation if drawing is not None],
        "has_experts": bool(with_experts),
        "schedule": _draw_all(training, [figures.draw_schedule], looks),
        "speed": _draw_all(training, [figures.draw_speed], looks),
        "times": times,
        "silent": silent,
        "expected_experts": run_data.plans_experts(),
        "examples": choose_examples(run_data, analysis, errors.models, looks),
        "events": [_describe_event(event) for event in run_data.events[-MAX_EVENTS:]],
        "quarantined": run_data.quarantined[:MAX_QUARANTINED],
        "num_quarantined": len(run_data.quarantined),
        "rejected": run_data.rejected,
        "num_events": len(run_data.events),
        "recipe_text": run_data.recipe_text,
    }


def draw_trades(
    run_data: RunData, table: ResultsTable, intervals: dict[str, ModelIntervals], looks: ModelLooks
) -> list[Drawing]:
    """Error rates against the parameters of the encoder, the computing of recognition, and that of training."""
    trained = {stage.name: stage.sum_over_steps("flops_per_s") for stage in run_data.training_stages()}
    drawings = []
    for trade in (model_figures.PARAMETERS, model_figures.COMPUTE, model_figures.TRAINING):
        points = []
        for row in table.rows:
            amount = _amount(trade, run_data.models[row.model], trained.get(row.model))
            if row.cer is None or not amount:
                continue
            interval = interval_of(intervals, row.model)
            points.append(TradePoint(row.model, row.is_teacher, amount, row.cer, interval))
        drawing = model_figures.draw_trade(trade, points, looks)
        if drawing is not None:
            drawings.append(drawing)
    return drawings


def _amount(trade: Trade, model: dict[str, Any], trained: float | None) -> float | None:
    if trade is model_figures.PARAMETERS:
        return model.get("encoder_parameters")
    if trade is model_figures.COMPUTE:
        return model.get("operations_per_s")
    return trained


def choose_examples(
    run_data: RunData, analysis: Analysis, errors: dict[str, ModelErrors], looks: ModelLooks
) -> Examples:
    """The utterances that the models get most characters of wrong; where no hypotheses were kept, those that were."""
    if analysis.utterances:
        return _analysed_examples(analysis.utterances[:MAX_EXAMPLES], looks)
    wrong: dict[tuple[str, str], float] = {}
    texts: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for model, model_errors in errors.items():
        for key, num_errors, row in zip(model_errors.keys, model_errors.characters_U, model_errors.rows, strict=True):
            wrong[key] = wrong.get(key, 0.0) + num_errors
            texts.setdefault(key, {})[model] = row
    hardest = sorted(wrong, key=lambda key: (-wrong[key], key))[:MAX_EXAMPLES]
    if hardest:
        examples = []
        for corpus, key in hardest:
            rows = texts[corpus, key]
            reference = next(iter(rows.values()))["reference"]
            hypotheses = []
            for model, row in rows.items():
                hypotheses.append(_align(model, reference, row["hypothesis"], looks, []))
            examples.append(Example(key, reference, hypotheses))
        about = f"The {len(examples)} hardest utterances: the models get most characters of them wrong, all models "
        about += "together. Their sound and the times of words were not kept: chorus report RUN --analyse adds both."
        return Examples(about, examples)

    kept: dict[str, Example] = {}
    for model, model_examples in run_data.examples.items():
        for entry in model_examples:
            key = str(entry.get("key", ""))
            reference = str(entry.get("reference", ""))
            example = kept.setdefault(key, Example(key, reference, hypotheses=[]))
            example.hypotheses.append(_align(model, reference, str(entry.get("hypothesis", "")), looks, []))
    examples = list(kept.values())[:MAX_EXAMPLES]
    return Examples(f"The first {len(examples)} that the evaluation kept.", examples)


def _analysed_examples(utterances: Sequence[HardUtterance], looks: ModelLooks) -> Examples:
    """The utterances whose sound and word times were kept."""
    examples = []
    for utterance in utterances:
        note = formatting.duration(utterance.seconds)
        if utterance.audio_url and utterance.audio_seconds < utterance.seconds:
            note += f", of which the first {formatting.duration(utterance.audio_seconds)} can be played"
        elif not utterance.audio_url:
            note += ", without sound"
        key = utterance.key
        if utterance.corpus:
            key = f"{utterance.corpus}: {key}"
        hypotheses = []
        for model, text in utterance.texts.items():
            hypotheses.append(_align(model, utterance.reference, text, looks, utterance.words[model]))
        examples.append(Example(key, utterance.reference, hypotheses, utterance.audio_url, note))
    about = "the models get most characters of them wrong, all models together. Below each hypothesis its words, the "
    about += "time at which each begins in seconds, and how sure the model is of it (the bar)."
    return Examples(f"The {len(examples)} hardest utterances: {about}", examples)


def _align(model: str, reference: str, text: str, looks: ModelLooks, words: list[TimedWord]) -> Hypothesis:
    pieces, errors, units = differences(reference, text)
    return Hypothesis(model, looks.number(model), pieces, errors, units, words)


def _draw_experts(stages: Sequence[StageData], looks: ModelLooks) -> list[Drawing]:
    """How evenly each stage uses its experts at the end and over time, and how sure its routers are."""
    drawings = []
    for stage in stages:
        drawings.append(expert_figures.draw_load(stage))
        drawings.append(expert_figures.draw_load_over_time(stage))
        drawings.append(expert_figures.draw_entropy(stage, looks.look(stage.name)))
    return [drawing for drawing in drawings if drawing is not None]


def _draw_all(stages: Sequence[StageData], draws: Sequence[Draw], looks: ModelLooks) -> list[Drawing]:
    """Every figure that has something to show, stage by stage."""
    drawings = []
    for stage in stages:
        for draw in draws:
            drawing = draw(stage, looks.look(stage.name))
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
