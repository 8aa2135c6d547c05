"""A comparison as one HTML page that is whole in itself, of the same make as a run's report.

Like the page of Markdown it follows from what the runs left, or from the records made of it: writing it again gives the
same page. Models are sorted by their errors; differences stand in the order in which the models are to be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.comparison.intervals import UNCONVERGED, ModelIntervals, rates_of_seeds
from launcher.comparison.model_results import ModelResult
from launcher.comparison.page import describe_baseline, format_difference, format_verdict
from launcher.formatting import MISSING, count, decimal, duration, percent
from launcher.inference.bootstrap import Interval
from launcher.report import model_figures
from launcher.report.environment import page_environment
from launcher.report.model_colours import ModelLooks
from launcher.report.model_figures import Trade, TradePoint
from launcher.report.results_view import Cell, Line
from launcher.run_folder import write_text


@dataclass(frozen=True)
class DifferenceLine:
    """A row of the table of differences, as text."""

    model: str
    colour: int
    against_first: str
    baselines: tuple[str, ...]
    against_last: str


def write_html(comparisons: Sequence[ModelIntervals], sources: Sequence[Path], out: Path) -> list[Path]:
    """Write the page of several comparisons, whose runs or folders of records are `sources`, and return its path."""
    sections = []
    # A model of two comparisons looks the same in both.
    names = []
    for intervals in comparisons:
        names += [model.name for model in intervals.comparison.models]
    looks = ModelLooks(names)
    for place, (intervals, source) in enumerate(zip(comparisons, sources, strict=True)):
        sections.append(_section(intervals, source, place, looks))
    environment = page_environment(Path(__file__).parent)
    write_text(out, environment.get_template("comparison.html").render({"sections": sections}))
    return [out]


def _section(intervals: ModelIntervals, source: Path, place: int, looks: ModelLooks) -> dict[str, Any]:
    """The variables of one comparison."""
    comparison = intervals.comparison
    evaluated = comparison.evaluated
    models = {model.name: model for model in comparison.models}
    rates = {name: intervals.rate(model.characters) for name, model in models.items()}

    teachers = {model.teacher for model in comparison.models if model.teacher in models}
    drawings = []
    for trade in (model_figures.PARAMETERS, model_figures.TRAINING):
        points = []
        for model in comparison.models:
            amount = _amount(trade, model)
            if amount:
                rate = rates[model.name]
                points.append(TradePoint(model.name, model.name in teachers, amount, rate.value, rate))
        drawing = model_figures.draw_trade(trade, points, looks, page_part=str(place))
        if drawing is not None:
            drawings.append(drawing)

    lines = []
    for model in sorted(comparison.models, key=lambda model: rates[model.name].value):
        lines.append(_line(intervals, model, rates[model.name], looks))
    about = (
        f"{evaluated.utterances} utterances ({duration(evaluated.seconds)}) of {evaluated.split}, "
        f"{evaluated.search.replace('_', ' ')} search on {evaluated.threads} threads."
    )
    return {
        "title": comparison.title,
        "source": source.name,
        "about": about,
        "findings": _findings(intervals, rates),
        "lines": lines,
        "drawings": drawings,
        "differences": _difference_lines(intervals, looks),
        "first": comparison.models[0].name,
        "last": comparison.models[-1].name,
    }


def _findings(intervals: ModelIntervals, rates: dict[str, Interval]) -> list[str]:
    """Each student beside its teacher, in a sentence; without any, the model with the fewest errors."""
    models = {model.name: model for model in intervals.comparison.models}
    findings = []
    for student in models.values():
        if student.teacher is None or student.teacher not in models:
            continue
        teacher = models[student.teacher]
        share = percent(student.encoder_parameters / teacher.encoder_parameters, 0)
        verdict = format_verdict(intervals.difference(student, teacher))
        findings.append(
            f"{student.name}, with {share} of the encoder parameters of {teacher.name}, against it: {verdict}."
        )
    if not findings:
        best = min(rates, key=lambda name: rates[name].value)
        findings.append(f"The fewest errors: {best}, with {percent(rates[best].value, 2)} of the characters wrong.")
    return findings


def _difference_lines(intervals: ModelIntervals, looks: ModelLooks) -> list[DifferenceLine]:
    lines = []
    for row in intervals.differences():
        baselines = []
        for baseline in row.baselines:
            baselines.append(f"{baseline.baseline}: {describe_baseline(baseline)}")
        line = DifferenceLine(
            row.model,
            looks.number(row.model),
            format_difference(row.against_first),
            tuple(baselines),
            format_difference(row.against_last),
        )
        lines.append(line)
    return lines


def _amount(trade: Trade, model: ModelResult) -> float:
    if trade is model_figures.PARAMETERS:
        return float(model.encoder_parameters)
    return model.operations


def _line(intervals: ModelIntervals, model: ModelResult, rate: Interval, looks: ModelLooks) -> Line:
    """A row of the table of results."""
    first = intervals.comparison.models[0]
    words = intervals.rate(model.words)
    seeds = []
    for seed, seed_rate in zip(model.seeds, rates_of_seeds(model.characters), strict=True):
        text = f"{seed}: {100 * seed_rate:.2f}"
        if seed_rate > UNCONVERGED:
            text += " †"
        seeds.append(text)
    load_entropy = MISSING
    if model.load_entropy is not None:
        load_entropy = f"{model.load_entropy:.2f}"
    whole_operations = ""
    if model.whole_operations is not None and model.whole_operations != model.operations:
        whole_operations = f"{decimal(model.whole_operations / 1e12)} with its sources"
    share = model.encoder_parameters / first.encoder_parameters
    cells = (
        Cell("CER", percent(rate.value, 2), _ends(rate), is_key=True),
        Cell("WER", percent(words.value, 2), _ends(words)),
        Cell("CER of each seed", ", ".join(seeds)),
        Cell("encoder parameters", count(model.encoder_parameters), f"{count(model.parameters)} in all"),
        Cell("of the first's", percent(share), share=share),
        Cell("real-time factor", f"{model.real_time_factor:.4f}"),
        Cell("training, min", f"{model.minutes:.1f}", f"{model.steps:,} steps"),
        Cell("operations, 10¹²", decimal(model.operations / 1e12), whole_operations),
        Cell("load entropy", load_entropy),
    )
    return Line(model.name, looks.number(model.name), model.about, cells)


def _ends(rate: Interval) -> str:
    return f"{100 * rate.low:.2f} to {100 * rate.high:.2f}"
