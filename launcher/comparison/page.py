"""A comparison as a page of Markdown, with its picture beside it.

Everything on the page follows from what the runs left: writing it again gives the same page.
"""

import itertools
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from launcher.comparison.bootstrap import Interval
from launcher.comparison.intervals import UNCONVERGED, ModelIntervals, converged_places, rates_of_seeds
from launcher.comparison.model_results import Comparison, ModelResult
from launcher.comparison.picture import Point, draw_comparison
from launcher.formatting import MISSING, count, duration, percent
from launcher.recipe import DistillStage
from launcher.report.svg import standalone
from launcher.run_folder import write_text

HEAD = """# Results

Written by `{command}` from what the runs left behind; run it again to write this page anew.

Brackets hold 95 % bootstrap intervals (Bisani and Ney, 2004) over utterances and, where there are several, over seeds;
an interval of a difference compares both models on the same draws, so it can be narrower than theirs. Rates are those
of all seeds together; spaces count as characters. *Real-time factor*: of the evaluation, median over seeds.
*Training*: minutes of the stage's steps, without start, validation and saving, and without its teacher's. *Load
entropy*: of the experts' load at the end of training, mean over layers; 1 is an even load. A dagger (†) marks a
training that has not converged: more than half of its characters are wrong. Differences to the model before are then
given once more, for the seeds in which both have converged.
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
    "load entropy",
)


def write_comparisons(comparisons: Sequence[Comparison], runs: Sequence[Path], out: Path) -> list[Path]:
    """Write the page at `out` and a picture for each run beside it; returns all paths written."""
    # Relative, so that the page is the same on every machine.
    run_paths = map(os.path.relpath, runs)
    command = shlex.join(["chorus", "compare", *run_paths, "--out", os.path.relpath(out)])
    sections = [HEAD.format(command=command)]
    written = [out]
    for comparison, run in zip(comparisons, runs, strict=True):
        intervals = ModelIntervals(comparison)
        points = []
        for model in comparison.models:
            points.append(Point(model.name, model.encoder_parameters, intervals.rate(model.characters)))
        picture = out.with_name(f"{out.stem}-{run.name}.svg")
        write_text(picture, standalone(draw_comparison(points, comparison.recipe.name)))
        written.append(picture)
        sections.append(_section(intervals, picture))
    # The page comes last: it refers to pictures that are there.
    write_text(out, "\n".join(sections))
    return written


def _section(intervals: ModelIntervals, picture: Path) -> str:
    comparison = intervals.comparison
    evaluation = comparison.evaluation
    search = evaluation.search.kind.replace("_", " ")
    seeds = _name_seeds(_seeds(comparison)).capitalize()
    lines = [
        f"## {comparison.recipe.name}",
        "",
        f"{comparison.utterances} utterances ({duration(comparison.seconds)}) of `{evaluation.split}`, "
        f"{search} search on {comparison.threads} threads. "
        f"{seeds}; {_training_lengths(comparison)}.",
        "",
        *_table(HEADINGS, [_row(intervals, model) for model in comparison.models]),
        "",
        f"![error rate against encoder parameters]({picture.name})",
        "",
        "Models of about the same size are moved apart.",
        "",
        *_findings(intervals),
    ]
    # A single model differs from nothing.
    if len(comparison.models) > 1:
        lines += ["", *_differences(intervals)]
    lines.append("")
    return "\n".join(lines)


def _seeds(comparison: Comparison) -> list[int]:
    """The seeds of each model, in the order of its repetitions; the recipe's own where nothing is repeated."""
    first = comparison.models[0].name
    seeds = []
    for stage in comparison.recipe.training_stages():
        if stage.repeats == first and stage.seed is not None:
            seeds.append(stage.seed)
    return seeds or [comparison.recipe.seed]


def _name_seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"seeds {', '.join(map(str, seeds))}"


def _training_lengths(comparison: Comparison) -> str:
    """How long each model was trained; said once where that is the same for all."""
    steps = {stage.unseeded_name: stage.steps for stage in comparison.recipe.training_stages()}
    lengths = []
    lengths_with_names = []
    for model in comparison.models:
        length = f"{steps[model.name]:,} steps, {model.audio_hours:.1f} h of audio"
        lengths.append(length)
        lengths_with_names.append(f"`{model.name}` {length}")
    if len(set(lengths)) == 1:
        return f"{lengths[0]} each"
    return "; ".join(lengths_with_names)


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
    return (
        f"`{model.name}`",
        model.about,
        count(model.encoder_parameters),
        percent(model.encoder_parameters / first.encoder_parameters),
        count(model.parameters),
        _format_rate(intervals.rate(model.characters)),
        _format_rate(intervals.rate(model.words)),
        ", ".join(seed_rates),
        f"{model.real_time_factor:.4f}",
        f"{model.minutes:.1f}",
        load_entropy,
    )


def _format_rate(rate: Interval) -> str:
    return f"{percent(rate.value, 2)} [{100 * rate.low:.2f}, {100 * rate.high:.2f}]"


def _format_difference(difference: Interval) -> str:
    """A relative difference with its interval, in percent."""
    return f"{100 * difference.value:+.1f} % [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _format_verdict(difference: Interval) -> str:
    """A relative difference, and whether its interval excludes that there is none."""
    verdict = "no difference shown"
    if difference.low > 0:
        verdict = "more errors"
    elif difference.high < 0:
        verdict = "fewer errors"
    return f"{_format_difference(difference)}, {verdict}"


def _findings(intervals: ModelIntervals) -> list[str]:
    """Each student beside its teacher, in a sentence."""
    models = {model.name: model for model in intervals.comparison.models}
    stages = intervals.comparison.recipe.training_stages()
    # The names under which a student refers to its teacher hold a seed.
    unseeded_names = {stage.name: stage.unseeded_name for stage in stages}

    findings = {}
    for stage in stages:
        if not isinstance(stage, DistillStage):
            continue
        teacher_name = stage.named_teachers[0].model
        student = models.get(stage.unseeded_name)
        teacher = models.get(unseeded_names.get(teacher_name, teacher_name))
        # A student of several seeds has a stage for each, and one finding.
        if student is None or teacher is None or student.name in findings:
            continue
        share = student.encoder_parameters / teacher.encoder_parameters
        difference = intervals.difference(student, teacher)
        findings[student.name] = (
            f"- `{student.name}`, with {percent(share)} of the encoder parameters of `{teacher.name}`, makes "
            f"{_format_difference(difference)} errors in characters against it."
        )
    return list(findings.values())


def _differences(intervals: ModelIntervals) -> list[str]:
    """Errors in characters against the first, the one before and the last."""
    models = intervals.comparison.models
    seeds = _seeds(intervals.comparison)
    first = models[0]
    last = models[-1]
    rows = []
    for previous, model in itertools.pairwise(models):
        against_first = _format_difference(intervals.difference(model, first))
        against_previous = f"`{previous.name}`: {_format_verdict(intervals.difference(model, previous))}"
        # Once more without the seeds in which one of both has not converged: such a seed outweighs all others.
        converged = converged_places(previous, model)
        if 0 < len(converged) < len(seeds):
            converged_seeds = _name_seeds([seeds[place] for place in converged])
            verdict = _format_verdict(intervals.difference(model, previous, seeds=converged))
            against_previous += f"; {converged_seeds}: {verdict}"
        against_last = MISSING
        if model is not last:
            against_last = _format_difference(intervals.difference(model, last))
        rows.append((f"`{model.name}`", against_first, against_previous, against_last))
    headings = ("errors in characters", f"against `{first.name}`", "against the one before", f"against `{last.name}`")
    return _table(headings, rows)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown."""
    rule = ["---"] * len(headings)
    return [f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows)]
