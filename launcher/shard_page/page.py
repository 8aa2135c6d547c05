"""Puts the page together: `write_page` draws what the records of each split say, and the plan of a run."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.sampling.sampler import BatchSampler
from data.shard_tools.statistics import Bucket, distributions, measure_buckets
from launcher import formatting
from launcher.report.environment import page_environment
from launcher.report.figures import Drawing
from launcher.report.svg import format_step
from launcher.run_folder import write_text
from launcher.shard_page import figures


@dataclass(frozen=True)
class PlanRow:
    """A row of the table of the plan."""

    lengths: str
    micro_batches: int
    utterances: str
    audio: str
    padding: str


@dataclass(frozen=True)
class SplitSection:
    """What the page says of one split; `refused` says why a run could not read it."""

    name: str
    finding: str
    drawings: list[Drawing]
    characters: Drawing | None
    plan: Drawing | None
    rows: list[PlanRow]
    refused: str
    statistics: dict[str, Any]


def write_page(
    path: Path, folder: Path, splits: Mapping[str, Path], samplers: Mapping[str, BatchSampler | str], settings: str
) -> None:
    """Write the page about these splits. `samplers` has what a run would read each with, or why it could not;
    `settings` says with which batches. Raises as `read_index`, and OSError when the page cannot be written."""
    sections = []
    for name, place in splits.items():
        sections.append(_section(name, place, samplers[name]))
    page = page_environment(Path(__file__).parent).get_template("template.html")
    text = page.render(
        name=folder.name or str(folder),
        folder=str(folder),
        written=time.strftime("%d %B %Y, %H:%M %Z"),
        settings=settings,
        sections=sections,
    )
    write_text(path, text)


def _section(name: str, place: Path, sampler: BatchSampler | str) -> SplitSection:
    contents = distributions(place)
    hours = float(contents.seconds.sum()) / 3600
    finding = f"{format_step(len(contents.seconds), 0)} utterances, {hours:.2f} h"
    drawings = [
        figures.draw_durations(name, contents),
        figures.draw_rates(name, contents),
        figures.draw_speakers(name, contents),
        figures.draw_languages(name, contents),
    ]
    characters = figures.draw_characters(name, contents)
    shown = [drawing for drawing in drawings if drawing is not None]
    if isinstance(sampler, str):
        return SplitSection(name, finding, shown, characters, None, [], sampler, {})
    buckets = measure_buckets(sampler)
    rows = [_plan_row(bucket) for bucket in buckets]
    excluded = {reason: len(utterances) for reason, utterances in sampler.excluded.items() if len(utterances)}
    statistics = {"steps per epoch": sampler.steps_per_epoch, **excluded}
    plan = figures.draw_plan(name, buckets)
    return SplitSection(name, finding, shown, characters, plan, rows, "", statistics)


def _plan_row(bucket: Bucket) -> PlanRow:
    return PlanRow(
        lengths=f"{figures.bucket_name(bucket)} s",
        micro_batches=bucket.micro_batches,
        utterances=f"{bucket.utterances / bucket.micro_batches:.1f}",
        audio=formatting.duration(bucket.audio_s),
        padding=formatting.percent(bucket.padding),
    )
