"""A comparison as a page of Markdown, with its picture beside it.

Everything on the page follows from what the runs left, or from the records made of it: writing it again gives the same
page.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from launcher.comparison.intervals import (
    UNCONVERGED,
    BaselineDifference,
    ModelIntervals,
    rates_of_seeds,
)
from launcher.comparison.model_results import ModelResult
from launcher.comparison.picture import Point, draw_comparison
from launcher.formatting import MISSING, count, duration, percent
from launcher.inference.bootstrap import Interval
from launcher.plain_text import markdown_code, markdown_line
from launcher.report.svg import standalone
from launcher.run_folder import write_text

HEAD = """# Results

Written by `{command}`; run it again to write this page anew.

Brackets hold 95 % bootstrap intervals (Bisani and Ney, 2004) over utterances and, where there are several, over seeds;
an interval of a difference compares both models on the same draws, so it can be narrower than theirs. Rates are those
of all seeds together; spaces count as characters. *Real-time factor*: of the evaluation, median over seeds.
*Training*: minutes of the stage's steps, without start, validation and saving; they depend on what else the machine
did. *Operations*: 10^12 floating-point operations of training, a teacher's forward passes included; *with its sources*:
and those of the models that it learnt or started from. *Load entropy*: of the experts' load at the end of training,
mean over layers; 1 is an even load. A dagger (†) marks a training that has not converged: more than half of its
characters are wrong. Differences are then given once more, for the seeds in which both have converged. *Detects*: half
the width of an interval, about the smallest difference that the comparison could have shown.
"""
HEADINGS = (
    "model",
    "what it is",
    "encoder parameters",
    "of the first's",
    "all parameters",
    "CER",
    "WER",
    "CER of each seed",
    "real-time factor",
    "training, min",
    "operations, 10^12",
    "with its sources",
    "load entropy",
)


def write_comparisons(comparisons: Sequence[ModelIntervals], sources: Sequence[Path], out: Path) -> list[Path]:
    """Write the page at `out` and a picture for each comparison beside it; returns all paths written.

    `sources` are the runs or folders of records that the comparisons come from.
    """
    # Relative, so that the page is the same on every machine.
    source_paths = map(os.path.relpath, sources)
    command = shlex.join(["chorus", "compare", *source_paths, "--out", os.path.relpath(out)])
    sections = [HEAD.format(command=command)]
    written = [out]
    for intervals, source in zip(comparisons, sources, strict=True):
        comparison = intervals.comparison
        points = []
        for model in comparison.models:
            points.append(Point(model.name, model.encoder_parameters, intervals.rate(model.characters)))
        picture = out.with_name(f"{out.stem}-{source.name}.svg")
        write_text(picture, standalone(draw_comparison(points, comparison.title)))
        written.append(picture)
        sections.append(_section(intervals, picture))
    # The page comes last: it refers to pictures that are there.
    write_text(out, "\n".join(sections))
    return written


def _section(intervals: ModelIntervals, picture: Path) -> str:
    comparison = intervals.comparison
    evaluated = comparison.evaluated
    search = markdown_line(evaluated.search.replace("_", " "))
    # What is the same for all models is said once.
    seeds_of_models = [model.seeds for model in comparison.models]
    if len(set(seeds_of_models)) == 1:
        seeds = name_seeds(seeds_of_models[0]).capitalize()
    else:
        seeds = "; ".join(f"`{model.name}` {name_seeds(model.seeds)}" for model in comparison.models)
    lengths = []
    lengths_with_names = []
    for model in comparison.models:
        length = f"{model.steps:,} steps, {model.audio_hours:.1f} h of audio"
        lengths.append(length)
        lengths_with_names.append(f"`{model.name}` {length}")
    training_lengths = "; ".join(lengths_with_names)
    if len(set(lengths)) == 1:
        training_lengths = f"{lengths[0]} each"

    lines = [
        f"## {markdown_line(comparison.title)}",
        "",
        f"{evaluated.utterances} utterances ({duration(evaluated.seconds)}) of {markdown_code(evaluated.split)}, "
        f"{search} search on {evaluated.threads} threads. "
        f"{seeds}; {training_lengths}.",
        "",
        *_table(HEADINGS, [_row(intervals, model) for model in comparison.models]),
        "",
        f"![error rate against encoder parameters]({quote(picture.name)})",
        "",
        "Models of about the same size are moved apart.",
        "",
    ]
    # Each student beside its teacher, in a sentence.
    models = {model.name: model for model in comparison.models}
    for student in comparison.models:
        teacher = None
        if student.teacher is not None:
            teacher = models.get(student.teacher)
        if teacher is None:
            continue
        share = student.encoder_parameters / teacher.encoder_parameters
        lines.append(
            f"- `{student.name}`, with {percent(share)} of the encoder parameters of `{teacher.name}`, makes "
            f"{format_difference(intervals.difference(student, teacher))} errors in characters against it."
        )
    # A single model differs from nothing.
    if len(comparison.models) > 1:
        lines += ["", *_differences(intervals)]
    lines.append("")
    return "\n".join(lines)


def name_seeds(seeds: Sequence[int]) -> str:
    """Seeds as part of a sentence."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"seeds {', '.join(map(str, seeds))}"


def _row(intervals: ModelIntervals, model: ModelResult) -> tuple[str, ...]:
    """The cells of a model, in the order of HEADINGS."""
    first = intervals.comparison.models[0]
    seed_rates = []
    for seed_rate in rates_of_seeds(model.characters):
        text = f"{100 * seed_rate:.2f}"
        if seed_rate > UNCONVERGED:
            text += " †"
        seed_rates.append(text)
    load_entropy = MISSING
    if model.load_entropy is not None:
        load_entropy = f"{model.load_entropy:.2f}"
    whole_operations = MISSING
    if model.whole_operations is not None:
        whole_operations = f"{model.whole_operations / 1e12:.1f}"
    return (
        f"`{model.name}`",
        markdown_line(model.about),
        count(model.encoder_parameters),
        percent(model.encoder_parameters / first.encoder_parameters),
        count(model.parameters),
        format_rate(intervals.rate(model.characters)),
        format_rate(intervals.rate(model.words)),
        ", ".join(seed_rates),
        f"{model.real_time_factor:.4f}",
        f"{model.minutes:.1f}",
        f"{model.operations / 1e12:.1f}",
        whole_operations,
        load_entropy,
    )


def format_rate(rate: Interval) -> str:
    """An error rate with its interval, in percent."""
    return f"{percent(rate.value, 2)} [{100 * rate.low:.2f}, {100 * rate.high:.2f}]"


def format_difference(difference: Interval | None) -> str:
    """A relative difference with its interval, in percent."""
    if difference is None:
        return MISSING
    return f"{100 * difference.value:+.1f} % [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def format_verdict(difference: Interval | None) -> str:
    """A relative difference, whether its interval excludes that there is none, and what it could have shown."""
    if difference is None:
        return "no seed in common"
    verdict = "no difference shown"
    if difference.low > 0:
        verdict = "more errors"
    elif difference.high < 0:
        verdict = "fewer errors"
    detects = 100 * (difference.high - difference.low) / 2
    return f"{format_difference(difference)}, {verdict} (detects {detects:.0f} %)"


def describe_baseline(baseline: BaselineDifference) -> str:
    """The verdict on a difference, and that of the seeds that have converged where these are not all."""
    text = format_verdict(baseline.difference)
    if baseline.converged is not None:
        text += f"; {name_seeds(baseline.converged_seeds)}: {format_verdict(baseline.converged)}"
    return text


def _differences(intervals: ModelIntervals) -> list[str]:
    """Errors in characters against the first, against those that a model is to be compared with, and the last."""
    models = intervals.comparison.models
    rows = []
    for row in intervals.differences():
        descriptions = []
        for baseline in row.baselines:
            descriptions.append(f"`{baseline.baseline}`: {describe_baseline(baseline)}")
        against_first = format_difference(row.against_first)
        rows.append((f"`{row.model}`", against_first, "; ".join(descriptions), format_difference(row.against_last)))
    headings = (
        "errors in characters",
        f"against `{models[0].name}`",
        "against its baseline",
        f"against `{models[-1].name}`",
    )
    return _table(headings, rows)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown."""
    rule = ["---"] * len(headings)
    lines = []
    for cells in (headings, rule, *rows):
        lines.append(f"| {' | '.join(cells)} |")
    return lines
