"""The figures of one stage. Each is narrow enough for a phone and says in its title what it shows.

A figure that has nothing to show is None; the page then says so in words. Colours are those of models: what is drawn of
a stage has the colour of its model, and its validations and parts are told apart by ink, dashes and marks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launcher import formatting
from launcher.report import svg
from launcher.report.model_colours import Look
from launcher.report.run_data import Series, StageData
from launcher.report.svg import EndLabel

# More points than a figure has pixels make the page large and show nothing.
_MAX_POINTS = 500
WIDE = (svg.WIDE_IN, 2.9)
NARROW = (svg.NARROW_IN, 2.6)
DASHED = (0, (2, 2))
# Of the parts of a loss.
_PART_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (8, 3)))
# A logarithmic axis pays from a span of this factor on.
_LOG_SPAN = 30


@dataclass(frozen=True)
class Drawing:
    """A figure with its title (what it says) and its caption (how to read it)."""

    title: str
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Panel:
    """One of several axes above each other: a metric, its title and the lowest y, None where that is free."""

    metric: str
    title: str
    lowest: float | None


def smooth(series: Series) -> np.ndarray:
    """A straight line fitted around each point to a twentieth of the points, within the range of the values.

    Unlike a mean it follows a trend to both ends of the series.
    """
    num_points = len(series)
    half = max(1, num_points // 40)
    x = np.arange(num_points, dtype=float)
    y = series.values
    start = np.maximum(0, np.arange(num_points) - half)
    stop = np.minimum(num_points, np.arange(num_points) + half + 1)

    def window_mean(values: np.ndarray) -> np.ndarray:
        # The sum of a window is the difference of two sums from the beginning.
        total = np.concatenate([[0.0], np.cumsum(values)])
        return (total[stop] - total[start]) / (stop - start)

    mean_x = window_mean(x)
    mean_y = window_mean(y)
    variance = window_mean(x * x) - mean_x**2
    covariance = window_mean(x * y) - mean_x * mean_y
    # A window of a single point has no slope.
    slope = np.divide(covariance, variance, out=np.zeros_like(y), where=variance > 1e-9)
    return np.clip(mean_y + slope * (x - mean_x), y.min(), y.max())


def plot(axes: Axes, series: Series, values: np.ndarray, **style: object) -> None:
    """A line through some of the points: as many as a figure can show."""
    stride = max(1, len(series) // _MAX_POINTS)
    axes.plot(series.steps[::stride], values[::stride], **style)  # type: ignore[arg-type]


def _plot_raw_and_smooth(axes: Axes, series: Series, look: Look) -> None:
    # Raw values scatter; faint, they show by how much and leave the line readable.
    plot(axes, series, series.values, color=look.colour, alpha=0.28, linewidth=0.8)
    plot(axes, series, smooth(series), color=look.colour)


def _plot_validations(axes: Axes, series: Series, colour: str, linewidth: float = 1.4) -> None:
    """Every point of a metric of the validation split, marked: there are few."""
    axes.plot(series.steps, series.values, color=colour, marker="o", markersize=4.5, linewidth=linewidth)


def use_log(axes: Axes, series: Sequence[Series]) -> None:
    """A logarithmic axis where the values span so much that an even one would show the highest alone."""
    values = np.concatenate([one.values for one in series])
    # A part of the loss may be zero or below, where a logarithm ends.
    if values.min() > 0 and values.max() / values.min() > _LOG_SPAN:
        axes.set_yscale("log")


def mark_restarts(axes: Axes, stage: StageData) -> None:
    for step in stage.restart_steps:
        axes.axvline(step, color=svg.MUTED, linewidth=0.9, linestyle=DASHED)


def render_stage(figure: Figure, stage: StageData, kind: str, title: str, caption: str) -> Drawing:
    # All stages are on one page, so the name of a figure needs both to be unique.
    picture = svg.render(figure, name=f"{kind}-{stage.name}", description=f"{stage.name}: {title}")
    return Drawing(title, picture, caption)


@mpl.rc_context(svg.STYLE)
def draw_loss(stage: StageData, look: Look) -> Drawing | None:
    """The loss of every step, faint, the same smoothed, and the validations."""
    loss = stage.series("loss")
    validation = stage.series("validation/loss")
    if not len(loss):
        return None

    figure = Figure(figsize=NARROW)
    axes = figure.subplots()
    use_log(axes, [loss])
    svg.prepare_axes(axes, "loss")
    _plot_raw_and_smooth(axes, loss, look)
    final = smooth(loss)[-1]
    labels = [EndLabel("training", final, look.colour)]
    if len(validation):
        _plot_validations(axes, validation, svg.INK, linewidth=1.2)
        labels.append(EndLabel("validation", validation.values[-1], svg.INK))
    mark_restarts(axes, stage)
    axes.set_xlabel("step")
    svg.label_ends(axes, labels)

    title = f"Loss from {formatting.decimal(loss.values[0])} to {formatting.decimal(final)}"
    caption = "Faint: as logged. Bold: smoothed over a twentieth of the steps."
    if stage.restart_steps:
        caption += " Dashed: restarts."
    return render_stage(figure, stage, "loss", title, caption)


@mpl.rc_context(svg.STYLE)
def draw_parts(stage: StageData, look: Look) -> Drawing | None:
    """The parts that the loss is the sum of, smoothed."""
    parts = {}
    for key in [*stage.keys("loss/"), *stage.keys("distill/")]:
        series = stage.series(key)
        if len(series):
            parts[key.removeprefix("loss/")] = series
    if not parts:
        return None

    figure = Figure(figsize=NARROW)
    axes = figure.subplots()
    use_log(axes, list(parts.values()))
    svg.prepare_axes(axes, "part of the loss")
    labels = []
    # The largest has the model's colour, the others ink, so that no part looks like another model.
    by_size = sorted(parts.items(), key=lambda part: -smooth(part[1])[-1])
    for index, (name, series) in enumerate(by_size):
        colour = svg.INK
        if index == 0:
            colour = look.colour
        smoothed = smooth(series)
        plot(axes, series, smoothed, color=colour, linestyle=_PART_DASHES[index % len(_PART_DASHES)], linewidth=1.5)
        labels.append(EndLabel(name, smoothed[-1], colour))
    axes.set_xlabel("step")
    svg.label_ends(axes, labels)

    title = "The part of the loss"
    if len(parts) > 1:
        title = f"The {len(parts)} parts of the loss"
    return render_stage(figure, stage, "parts", title, "Smoothed over a twentieth of the steps.")


@mpl.rc_context(svg.STYLE)
def draw_validation(stage: StageData, look: Look) -> Drawing | None:
    """The character error rate of the validation split."""
    rate = stage.series("validation/cer")
    if not len(rate):
        return None

    figure = Figure(figsize=NARROW)
    axes = figure.subplots()
    svg.prepare_axes(axes, "character error rate", percent=True)
    _plot_validations(axes, rate, look.colour)
    # From zero, so that heights compare as rates do. Without any error there is no height to scale the axis by.
    axes.set_ylim(0, 1.08 * rate.values.max() or 1)
    axes.set_xlim(0, 1.02 * max(rate.steps[-1], 1))
    axes.set_xlabel("step")
    final = rate.values[-1]
    svg.label_ends(axes, [EndLabel(formatting.percent(final), final, look.colour)])

    best = rate.values.argmin()
    title = f"{formatting.percent(rate.values[best])} of characters wrong at best, at step {rate.steps[best]}"
    return render_stage(figure, stage, "validation", title, "Character error rate on the validation split.")


@mpl.rc_context(svg.STYLE)
def draw_masked_accuracy(stage: StageData, look: Look) -> Drawing | None:
    """The share of masked frames of the validation split whose codes are predicted, and how evenly codes are used."""
    accuracy = stage.series("validation/masked_accuracy")
    entropy = stage.series("validation/code_entropy")
    if not len(accuracy):
        return None

    figure = Figure(figsize=NARROW)
    axes = figure.subplots()
    svg.prepare_axes(axes, "share", percent=True)
    labels = []
    curves = (("predicted", accuracy, look.colour), ("code entropy", entropy, svg.INK))
    for name, series, colour in curves:
        if not len(series):
            continue
        _plot_validations(axes, series, colour)
        final = series.values[-1]
        labels.append(EndLabel(f"{name} {formatting.percent(final)}", final, colour))
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0, 1.02 * max(accuracy.steps[-1], 1))
    axes.set_xlabel("step")
    svg.label_ends(axes, labels)

    title = f"{formatting.percent(accuracy.values.max())} of masked frames predicted at best"
    caption = "On the validation split; code entropy is that of the codes to predict, over the most that it could be."
    return render_stage(figure, stage, "masked", title, caption)


def draw_schedule(stage: StageData, look: Look) -> Drawing | None:
    """Learning rate and gradient norm."""
    rate = stage.series("learning_rate")
    title = stage.name
    if len(rate):
        title = f"{stage.name}: learning rate up to {formatting.decimal(rate.values.max())}"
    caption = "Gradient norm before clipping; faint: as logged, bold: smoothed."
    panels = [
        Panel("learning_rate", "learning rate", lowest=0.0),
        Panel("grad_norm", "gradient norm", lowest=None),
    ]
    return _draw_panels(stage, look, "schedule", title, caption, panels)


def draw_speed(stage: StageData, look: Look) -> Drawing | None:
    """Throughput, time per step and waiting for data."""
    speed = stage.series("audio_s_per_s")
    median = formatting.MISSING
    if len(speed):
        median = formatting.decimal(float(np.median(speed.values)))
    title = f"{stage.name}: {median} seconds of audio per second"
    caption = "The title gives the median. Faint: as logged, bold: smoothed."
    panels = [
        Panel("audio_s_per_s", "seconds of audio per second", lowest=0.0),
        Panel("step_s", "seconds per step", lowest=0.0),
        Panel("data_wait", "share of the step spent waiting for data", lowest=0.0),
    ]
    return _draw_panels(stage, look, "speed", title, caption, panels)


@mpl.rc_context(svg.STYLE)
def _draw_panels(
    stage: StageData, look: Look, kind: str, title: str, caption: str, panels: Sequence[Panel]
) -> Drawing | None:
    """Panels above each other on one axis of steps; those whose metric was never recorded are dropped."""
    recorded = []
    for panel in panels:
        series = stage.series(panel.metric)
        if len(series):
            recorded.append((panel, series))
    if not recorded:
        return None

    # The axis of steps is drawn once, below the last panel.
    figure = Figure(figsize=(svg.WIDE_IN, 0.5 + 1.3 * len(recorded)))
    all_axes = figure.subplots(len(recorded), sharex=True, squeeze=False)[:, 0]
    for axes, (panel, series) in zip(all_axes, recorded, strict=True):
        if panel.lowest is None:
            use_log(axes, [series])
        svg.prepare_axes(axes, panel.title, percent=panel.metric == "data_wait")
        if panel.metric == "learning_rate":
            # A schedule has no noise, and smoothing would round its corners.
            plot(axes, series, series.values, color=look.colour)
        else:
            _plot_raw_and_smooth(axes, series, look)
        if panel.lowest is not None:
            axes.set_ylim(bottom=panel.lowest)
        mark_restarts(axes, stage)
    all_axes[-1].set_xlabel("step")
    return render_stage(figure, stage, kind, title, caption)
