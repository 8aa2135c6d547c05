"""A comparison as a page of Markdown, with its picture beside it.

Everything on the page follows from what the runs left: writing it again gives the same page.
"""

import itertools
import os
import shlex
from collections.abc import Iterable, Sequence
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
    *("model", "what it is", "encoder parameters", "of the first's", "all parameters", "CER", "WER"),
    *("CER of each seed", "real-time factor", "training, min", "load entropy"),
)


def write_comparisons(comparisons: Sequence[Comparison], runs: Sequence[Path], out: Path) -> list[Path]:
    """Write the page at `out` and a picture for each run beside it; returns all paths written."""
    command = shlex.join(["chorus", "compare", *(os.path.relpath(run) for run in runs), "--out", os.path.relpath(out)])
    pictures = [out.with_name(f"{out.stem}-{run.name}.svg") for run in runs]
    sections = []
    for comparison, picture in zip(comparisons, pictures, strict=True):
        judged = ModelIntervals.of(comparison)
        points = [Point(r.name, r.encoder_parameters, judged.rate(r.characters)) for r in comparison.rungs]
        write_text(picture, standalone(str(draw_comparison(points, comparison.recipe.name))))
        sections.append(_section(judged, picture))
    write_text(out, "\n".join([HEAD.format(command=command), *sections]))
    return [out, *pictures]


def _section(judged: ModelIntervals, picture: Path) -> str:
    comparison = judged.comparison
    rungs = comparison.rungs
    trained = _named(_seeds(comparison)).capitalize()
    search = comparison.evaluation.search.kind.replace("_", " ")
    lines = [
        f"## {comparison.recipe.name}",
        "",
        f"{comparison.utterances} utterances ({duration(comparison.seconds)}) of `{comparison.evaluation.split}`, "
        f"{search} search on {comparison.threads} threads. "
        f"{trained}; {_steps(comparison)}.",
        "",
        *_table(HEADINGS, (_row(judged, rung) for rung in rungs)),
        "",
        f"![error rate against encoder parameters]({picture.name})",
        "",
        "Models of about the same size are moved apart.",
        "",
        *_findings(judged),
    ]
    if len(rungs) > 1:
        lines += ["", *_differences(judged)]
    return "\n".join([*lines, ""])


def _seeds(comparison: Comparison) -> list[int]:
    stages = comparison.recipe.training_stages()
    repeated = [stage.seed for stage in stages if stage.repeats == comparison.rungs[0].name]
    return [seed for seed in repeated if seed is not None] or [comparison.recipe.seed]


def _named(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _steps(comparison: Comparison) -> str:
    """How long each was trained."""
    steps = {stage.unseeded_name: stage.steps for stage in comparison.recipe.training_stages()}
    trained = {rung.name: f"{steps[rung.name]:,} steps, {rung.audio_hours:.1f} h of audio" for rung in comparison.rungs}
    if len(set(trained.values())) == 1:
        return f"{next(iter(trained.values()))} each"
    return "; ".join(f"`{name}` {how}" for name, how in trained.items())


def _row(judged: ModelIntervals, rung: ModelResult) -> tuple[str, ...]:
    first = judged.comparison.rungs[0]
    return (
        f"`{rung.name}`",
        rung.about,
        count(rung.encoder_parameters),
        percent(rung.encoder_parameters / first.encoder_parameters),
        count(rung.parameters),
        _between(judged.rate(rung.characters)),
        _between(judged.rate(rung.words)),
        ", ".join(f"{100 * value:.2f}{' †' * (value > UNCONVERGED)}" for value in rates_of_seeds(rung.characters)),
        f"{rung.real_time_factor:.4f}",
        f"{rung.minutes:.1f}",
        MISSING if rung.load_entropy is None else f"{rung.load_entropy:.2f}",
    )


def _between(rate: Interval) -> str:
    return f"{percent(rate.value, 2)} [{100 * rate.low:.2f}, {100 * rate.high:.2f}]"


def _more(difference: Interval) -> str:
    """A relative difference with its interval, in percent."""
    return f"{100 * difference.value:+.1f} % [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _verdict(difference: Interval) -> str:
    if difference.low > 0:
        return "more errors"
    return "fewer errors" if difference.high < 0 else "no difference shown"


def _findings(judged: ModelIntervals) -> Iterable[str]:
    """Each student beside its teacher, in a sentence."""
    rungs = {rung.name: rung for rung in judged.comparison.rungs}
    stages = judged.comparison.recipe.training_stages()
    rung_of_stage = {stage.name: rungs.get(stage.unseeded_name) for stage in stages}
    teachers = {
        stage.unseeded_name: stage.named_teachers[0].model for stage in stages if isinstance(stage, DistillStage)
    }
    for name, model in teachers.items():
        student, teacher = rungs.get(name), rung_of_stage.get(model)
        if student and teacher:
            share = student.encoder_parameters / teacher.encoder_parameters
            yield (
                f"- `{name}`, with {percent(share)} of the encoder parameters of `{teacher.name}`, makes "
                f"{_more(judged.difference(student, teacher))} errors in characters against it."
            )


def _differences(judged: ModelIntervals) -> list[str]:
    """Errors in characters against the first, the one before and the last."""
    rungs, seeds = judged.comparison.rungs, _seeds(judged.comparison)
    first, last = rungs[0], rungs[-1]
    rows = []
    for before, rung in itertools.pairwise(rungs):
        against = judged.difference(rung, before)
        compared = f"`{before.name}`: {_more(against)}, {_verdict(against)}"
        converged = converged_places(before, rung)
        if 0 < len(converged) < len(seeds):
            against = judged.difference(rung, before, converged)
            compared += f"; {_named([seeds[place] for place in converged])}: {_more(against)}, {_verdict(against)}"
        rows.append(
            (
                f"`{rung.name}`",
                _more(judged.difference(rung, first)),
                compared,
                MISSING if rung is last else _more(judged.difference(rung, last)),
            )
        )
    headings = ("errors in characters", f"against `{first.name}`", "against the one before", f"against `{last.name}`")
    return _table(headings, rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]
