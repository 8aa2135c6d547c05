"""The figures of the page about a set of shards; each says in its title what it shows."""

import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from data.shard_tools.statistics import Bucket, Distributions
from launcher import formatting
from launcher.report import svg
from launcher.report.figures import Drawing

_SIZE = (svg.NARROW_IN, 2.6)
# Bars with a name each; more would touch.
_MAX_BARS = 12
_MAX_CHARACTERS = 45
# A longer name would leave no room for its bar.
_MAX_NAME = 22
_NUM_BINS = 40


@contextmanager
def _foreign_letters() -> Iterator[None]:
    """Matplotlib's font lacks the letters of many scripts, and warns of each; the page's browser has them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _render(figure: Figure, split: str, kind: str, title: str, caption: str) -> Drawing:
    # All splits are on one page, so the name of a figure needs both to be unique.
    with _foreign_letters():
        picture = svg.render(figure, name=f"{kind}-{split}", description=f"{split}: {title}")
    return Drawing(title, picture, caption)


@mpl.rc_context(svg.STYLE)
def draw_durations(split: str, contents: Distributions) -> Drawing:
    """How many utterances are how long."""
    low, median, high = np.quantile(contents.seconds, (0.05, 0.5, 0.95))
    title = f"Nine in ten utterances last {low:.1f} to {high:.1f} s"
    caption = f"Median {median:.1f} s, from {contents.seconds.min():.2f} to {contents.seconds.max():.1f} s."
    return _render(_histogram(contents.seconds, "utterances", "seconds"), split, "durations", title, caption)


@mpl.rc_context(svg.STYLE)
def draw_rates(split: str, contents: Distributions) -> Drawing | None:
    """How fast is spoken; None where nothing has a text."""
    spoken = contents.characters > 0
    if not spoken.any():
        return None
    rates = contents.characters[spoken] / np.maximum(contents.seconds[spoken], 1e-3)
    low, median, high = np.quantile(rates, (0.05, 0.5, 0.95))
    title = f"{median:.1f} characters per second, nine in ten {low:.1f} to {high:.1f}"
    caption = "Far out at either end stand wrong transcripts; chorus shards verify names them."
    # A single wrong one would press all others into the first bar.
    shown = rates[rates <= 4 * max(high, 1e-3)]
    if len(shown) < len(rates):
        caption += f" {len(rates) - len(shown)} beyond the axis."
    return _render(_histogram(shown, "utterances", "characters per second"), split, "rates", title, caption)


def _histogram(values: np.ndarray, title: str, label: str) -> Figure:
    figure = Figure(figsize=_SIZE)
    axes = figure.subplots()
    svg.prepare_axes(axes, title)
    # Of few values, wide bars: each holds some.
    num_bins = min(_NUM_BINS, max(8, round(2 * len(values) ** 0.5)))
    axes.hist(values, bins=num_bins, color=svg.ACCENT)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(svg.format_decimal)
    axes.set_xlabel(label)
    return figure


@mpl.rc_context(svg.STYLE)
def draw_speakers(split: str, contents: Distributions) -> Drawing:
    """The hours of the speakers with most."""
    known = {name for name in contents.seconds_of_speaker if name}
    title = f"{len(known)} speakers"
    if len(known) == 1:
        title = "1 speaker"
    if not known:
        title = "No speaker is known"
    return _draw_shares(split, "speakers", title, contents.seconds_of_speaker)


@mpl.rc_context(svg.STYLE)
def draw_languages(split: str, contents: Distributions) -> Drawing:
    """The hours of each language."""
    known = {name for name in contents.seconds_of_language if name}
    title = f"{len(known)} languages"
    if len(known) == 1:
        title = f"1 language: {next(iter(known))}"
    if not known:
        title = "No language is known"
    return _draw_shares(split, "languages", title, contents.seconds_of_language)


def _draw_shares(split: str, kind: str, title: str, seconds: Counter[str]) -> Drawing:
    """Bars of hours, those with most above; the rest is one bar."""
    names: list[str] = []
    hours: list[float] = []
    for name, length in seconds.most_common(_MAX_BARS):
        names.append(_short(name or "unknown"))
        hours.append(length / 3600)
    others = len(seconds) - len(names)
    if others > 0:
        names.append(f"{others} others")
        hours.append((sum(seconds.values()) / 3600) - sum(hours))

    figure = Figure(figsize=(svg.NARROW_IN, 0.7 + 0.2 * max(4, len(names))))
    axes = figure.subplots()
    axes.set_title("hours")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.barh(range(len(names)), hours, color=svg.ACCENT, height=0.7)
    # Text alone: a name is no mathematics, and no number.
    axes.set_yticks(range(len(names)), names)
    # Downwards, and of one speaker the bar is no higher than of many.
    axes.set_ylim(max(4, len(names)) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(svg.format_decimal)
    caption = "Those with most, and the rest together." if others > 0 else ""
    return _render(figure, split, kind, title, caption)


@mpl.rc_context(svg.STYLE)
def draw_characters(split: str, contents: Distributions) -> Drawing | None:
    """In how many utterances each character stands, the most frequent first; None without any."""
    uses = contents.uses_of_character.most_common()
    if not uses:
        return None
    rare = [character for character, count in uses if count <= 3]
    title = f"{len(uses)} characters, {len(rare)} of them in three utterances or fewer"
    figure = Figure(figsize=(svg.WIDE_IN, 2.6))
    axes = figure.subplots()
    counts = [count for _, count in uses]
    if counts[0] > 30 * counts[-1]:
        axes.set_yscale("log")
    svg.prepare_axes(axes, "utterances with it")
    if len(uses) <= _MAX_CHARACTERS:
        axes.bar(range(len(uses)), counts, color=svg.ACCENT, width=0.75)
        axes.set_xticks(range(len(uses)), [visible(character) for character, _ in uses], fontsize=8)
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.plot(range(1, len(uses) + 1), counts, color=svg.ACCENT)
        axes.set_xlabel("characters, the most frequent first")
    caption = ""
    if rare:
        caption = f"Rare: {' '.join(visible(character) for character in rare[:60])}"
    return _render(figure, split, "characters", title, caption)


@mpl.rc_context(svg.STYLE)
def draw_plan(split: str, buckets: Sequence[Bucket]) -> Drawing:
    """The micro-batches of an epoch by length: their audio, and the silence that fills them up."""
    names = [bucket_name(bucket) for bucket in buckets]
    audio = [bucket.audio_s / 3600 for bucket in buckets]
    silence = [(bucket.padded_s - bucket.audio_s) / 3600 for bucket in buckets]
    figure = Figure(figsize=(svg.WIDE_IN, 2.6))
    axes: Axes = figure.subplots()
    svg.prepare_axes(axes, "hours of an epoch")
    positions = range(len(buckets))
    axes.bar(positions, audio, color=svg.ACCENT, width=0.75)
    axes.bar(positions, silence, bottom=audio, color=svg.SERIES[1], width=0.75)
    axes.set_xticks(positions, names, fontsize=8)
    axes.set_xlabel("longest utterance of a micro-batch, in seconds")
    waste = sum(silence) / max(sum(audio) + sum(silence), 1e-9)
    title = f"{formatting.percent(waste)} of an epoch is padding"
    caption = "Blue: audio. Orange: silence that fills up the shorter utterances of a micro-batch."
    return _render(figure, split, "plan", title, caption)


def bucket_name(bucket: Bucket) -> str:
    """The lengths of a bucket, as an axis and a table have them."""
    if bucket.to_s == float("inf"):
        return f"{bucket.from_s:g}+"
    return f"{bucket.from_s:g}–{bucket.to_s:g}"


def visible(character: str) -> str:
    """A character as it can be seen: a space as an open box, a mark on a dotted circle."""
    if character == " ":
        return "␣"
    if unicodedata.category(character)[0] == "M":
        return f"◌{character}"
    return character


def _short(name: str) -> str:
    if len(name) <= _MAX_NAME:
        return name
    return name[: _MAX_NAME - 1] + "…"
