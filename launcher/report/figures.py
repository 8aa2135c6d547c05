"""The figures of the report. Each is narrow enough for a phone and says in its title what it shows.

A figure that has nothing to show is None; the page then says so in words.

Shapes: L layers with experts, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from launcher import formatting
from launcher.report import svg
from launcher.report.results import ResultRow, ResultsTable
from launcher.report.run_data import Series, StageData, average_load
from launcher.report.svg import EndLabel

# More points than a figure has pixels make the page large and show nothing.
_MAX_POINTS = 500
_WIDE = (svg.WIDE_IN, 2.9)
_NARROW = (svg.NARROW_IN, 2.6)
_DASHED = (0, (2, 2))
# Borders of the heat map's colours, in even shares: the middle one is what counts as even.
_HEAT_BORDERS = (0.0, 0.4, 0.6, 0.8, 0.95, 1.05, 1.25, 1.6, 2.2, 1e9)
# With more experts, the numbers in the cells of the heat map and below it would touch.
_MAX_EXPERTS_WITH_VALUES = 10
_MAX_EXPERT_TICKS = 16
# A logarithmic axis pays from a span of this factor on.
_LOG_SPAN = 30
# Below it, an expert of the heat map's caption is as good as unused.
_UNUSED_SHARE = 0.05


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


def _plot(axes: Axes, series: Series, values: np.ndarray, **style: object) -> None:
    stride = max(1, len(series) // _MAX_POINTS)
    axes.plot(series.steps[::stride], values[::stride], **style)  # type: ignore[arg-type]


def _plot_raw_and_smooth(axes: Axes, series: Series) -> None:
    # Raw values scatter; faint, they show by how much and leave the line readable.
    _plot(axes, series, series.values, color=svg.ACCENT, alpha=0.28, linewidth=0.8)
    _plot(axes, series, smooth(series), color=svg.ACCENT)


def _plot_validations(axes: Axes, series: Series, colour: str, linewidth: float = 1.4) -> None:
    """Every point of a metric of the validation split, marked: there are few."""
    axes.plot(series.steps, series.values, color=colour, marker="o", markersize=4.5, linewidth=linewidth)


def _use_log(axes: Axes, series: Sequence[Series]) -> None:
    values = np.concatenate([one.values for one in series])
    # A part of the loss may be zero or below, where a logarithm ends.
    if values.min() > 0 and values.max() / values.min() > _LOG_SPAN:
        axes.set_yscale("log")


def _mark_restarts(axes: Axes, stage: StageData) -> None:
    for step in stage.restart_steps:
        axes.axvline(step, color=svg.MUTED, linewidth=0.9, linestyle=_DASHED)


def _render(figure: Figure, stage: StageData, kind: str, title: str, caption: str) -> Drawing:
    # All stages are on one page, so the name of a figure needs both to be unique.
    picture = svg.render(figure, name=f"{kind}-{stage.name}", description=f"{stage.name}: {title}")
    return Drawing(title, picture, caption)


@mpl.rc_context(svg.STYLE)
def draw_loss(stage: StageData) -> Drawing | None:
    """The loss of every step, faint, the same smoothed, and the validations."""
    loss = stage.series("loss")
    validation = stage.series("validation/loss")
    if not len(loss):
        return None

    figure = Figure(figsize=_NARROW)
    axes = figure.subplots()
    _use_log(axes, [loss])
    svg.prepare_axes(axes, "loss")
    _plot_raw_and_smooth(axes, loss)
    final = smooth(loss)[-1]
    labels = [EndLabel("training", final, svg.ACCENT)]
    if len(validation):
        _plot_validations(axes, validation, svg.SERIES[1], linewidth=1.2)
        labels.append(EndLabel("validation", validation.values[-1], svg.SERIES[1]))
    _mark_restarts(axes, stage)
    axes.set_xlabel("step")
    svg.label_ends(axes, labels)

    title = f"Loss from {formatting.decimal(loss.values[0])} to {formatting.decimal(final)}"
    caption = "Faint: as logged. Bold: smoothed over a twentieth of the steps."
    if stage.restart_steps:
        caption += " Dashed: restarts."
    return _render(figure, stage, "loss", title, caption)


@mpl.rc_context(svg.STYLE)
def draw_parts(stage: StageData) -> Drawing | None:
    """The parts that the loss is the sum of, smoothed."""
    parts = {}
    for key in [*stage.keys("loss/"), *stage.keys("distill/")]:
        series = stage.series(key)
        if len(series):
            parts[key.removeprefix("loss/")] = series
    if not parts:
        return None

    figure = Figure(figsize=_NARROW)
    axes = figure.subplots()
    _use_log(axes, list(parts.values()))
    svg.prepare_axes(axes, "part of the loss")
    labels = []
    for index, (name, series) in enumerate(parts.items()):
        colour = svg.SERIES[index % len(svg.SERIES)]
        smoothed = smooth(series)
        _plot(axes, series, smoothed, color=colour)
        labels.append(EndLabel(name, smoothed[-1], colour))
    axes.set_xlabel("step")
    svg.label_ends(axes, labels)

    title = "The part of the loss"
    if len(parts) > 1:
        title = f"The {len(parts)} parts of the loss"
    return _render(figure, stage, "parts", title, "Smoothed over a twentieth of the steps.")


@mpl.rc_context(svg.STYLE)
def draw_validation(stage: StageData) -> Drawing | None:
    """The character error rate of the validation split."""
    rate = stage.series("validation/cer")
    if not len(rate):
        return None

    figure = Figure(figsize=_NARROW)
    axes = figure.subplots()
    svg.prepare_axes(axes, "character error rate", percent=True)
    _plot_validations(axes, rate, svg.SERIES[1])
    # From zero, so that heights compare as rates do. Without any error there is no height to scale the axis by.
    axes.set_ylim(0, 1.08 * rate.values.max() or 1)
    axes.set_xlim(0, 1.02 * max(rate.steps[-1], 1))
    axes.set_xlabel("step")
    final = rate.values[-1]
    svg.label_ends(axes, [EndLabel(formatting.percent(final), final, svg.SERIES[1])])

    best = rate.values.argmin()
    title = f"{formatting.percent(rate.values[best])} of characters wrong at best, at step {rate.steps[best]}"
    return _render(figure, stage, "validation", title, "Character error rate on the validation split.")


@mpl.rc_context(svg.STYLE)
def draw_masked_accuracy(stage: StageData) -> Drawing | None:
    """The share of masked frames of the validation split whose codes are predicted, and how evenly codes are used."""
    accuracy = stage.series("validation/masked_accuracy")
    entropy = stage.series("validation/code_entropy")
    if not len(accuracy):
        return None

    figure = Figure(figsize=_NARROW)
    axes = figure.subplots()
    svg.prepare_axes(axes, "share", percent=True)
    labels = []
    curves = (("predicted", accuracy, svg.SERIES[0]), ("code entropy", entropy, svg.SERIES[1]))
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
    return _render(figure, stage, "masked", title, caption)


@mpl.rc_context(svg.STYLE)
def draw_sizes(table: ResultsTable) -> Drawing | None:
    """Error rate against encoder parameters: the trade every run is about."""
    rows = []
    parameters = []
    error_rates = []
    for row in table.rows:
        if row.encoder_parameters and row.cer is not None:
            rows.append(row)
            parameters.append(row.encoder_parameters)
            error_rates.append(row.cer)
    if not rows:
        return None

    figure = Figure(figsize=_WIDE)
    axes = figure.subplots()
    svg.prepare_axes(axes, "character error rate", percent=True)
    right_end = 1.1 * max(parameters)
    for row in rows:
        _place_model(axes, row, right_end)
    axes.set_xlim(0, right_end)
    # Models without any error leave no height to scale the axis by.
    axes.set_ylim(0, 1.25 * max(error_rates) or 1)
    axes.xaxis.set_major_formatter(svg.format_millions)
    axes.set_xlabel("encoder parameters")

    title = "Fewer errors lie lower, fewer parameters further left"
    caption = "Both axes start at zero, so distances are to scale. Hollow: the teacher."
    picture = svg.render(figure, name="sizes", description="Error rate against encoder parameters")
    return Drawing(title, picture, caption)


def _place_model(axes: Axes, row: ResultRow, right_end: float) -> None:
    assert row.encoder_parameters is not None
    assert row.cer is not None
    filling = svg.ACCENT
    if row.is_teacher:
        filling = svg.PAPER
    axes.plot(
        row.encoder_parameters,
        row.cer,
        "o",
        markersize=9,
        markeredgewidth=2,
        markeredgecolor=svg.ACCENT,
        markerfacecolor=filling,
        # A model without errors lies on the axis.
        clip_on=False,
    )

    # The label stands on the side where there is room for it.
    offset_points = 9
    alignment = "left"
    if row.encoder_parameters >= 0.6 * right_end:
        offset_points = -9
        alignment = "right"
    axes.annotate(
        f"{row.model}  {formatting.percent(row.cer)}",
        xy=(row.encoder_parameters, row.cer),
        xytext=(offset_points, 0),
        textcoords="offset points",
        ha=alignment,
        va="center",
        color=svg.INK,
    )


@mpl.rc_context(svg.STYLE)
def draw_load(stage: StageData) -> Drawing | None:
    """A heat map of the load, layers by experts, centred on the even share."""
    load_LE = average_load(stage)
    if load_LE is None:
        return None
    num_layers, num_experts = load_LE.shape
    # Deep models get lower cells, so that the map still fits a screen.
    cell_height_in = max(0.22, 0.42 - 0.01 * num_layers)
    height_in = min(9.0, 0.8 + cell_height_in * num_layers)

    figure = Figure(figsize=(svg.WIDE_IN, height_in))
    axes = figure.subplots()
    norm = BoundaryNorm(_HEAT_BORDERS, len(svg.HEAT))
    axes.pcolormesh(load_LE, cmap=ListedColormap(svg.HEAT), norm=norm, edgecolors=svg.PAPER, linewidth=2)
    # The first layer is at the top, as in a listing.
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    # pcolormesh has the corners of the cells at whole numbers, so the middle of a cell is half a unit further.
    axes.set_yticks(np.arange(num_layers) + 0.5, [layer.replace("-", " ") for layer in stage.expert_layers()])
    ticks = np.arange(0, num_experts, int(np.ceil(num_experts / _MAX_EXPERT_TICKS)))
    axes.set_xticks(ticks + 0.5, [str(tick) for tick in ticks])
    axes.set_xlabel("expert")
    if num_experts <= _MAX_EXPERTS_WITH_VALUES:
        for layer, expert in np.argwhere(np.isfinite(load_LE)):
            value = f"{load_LE[layer, expert]:.2f}"
            axes.text(expert + 0.5, layer + 0.5, value, ha="center", va="center", fontsize=9)

    title = f"{stage.name}: the busiest expert takes {np.nanmax(load_LE):.2f} times an even share"
    num_unused = int((load_LE < _UNUSED_SHARE).sum())
    if num_unused == 0:
        unused = "No experts get"
    elif num_unused == 1:
        unused = "1 expert gets"
    else:
        unused = f"{num_unused} experts get"
    caption = (
        "Mean over the last tenth of the steps; 1 is an even share, blue is less, orange more. "
        f"{unused} less than a twentieth of an even share."
    )
    return _render(figure, stage, "load", title, caption)


@mpl.rc_context(svg.STYLE)
def draw_entropy(stage: StageData) -> Drawing | None:
    """How undecided the routers are: a frame's entropy over experts, one line per layer and place."""
    layers = {}
    for layer in stage.expert_layers():
        series = stage.series(f"experts/{layer}/entropy")
        if len(series):
            layers[layer] = series
    load_LE = average_load(stage)
    if not layers or load_LE is None:
        return None
    # The entropy of E experts that are equally likely.
    undecided = float(np.log(load_LE.shape[1]))
    final = {layer: smooth(series)[-1] for layer, series in layers.items()}
    surest = min(final, key=final.__getitem__)
    least_sure = max(final, key=final.__getitem__)

    figure = Figure(figsize=_WIDE)
    axes = figure.subplots()
    svg.prepare_axes(axes, "entropy of a frame's expert probabilities (nats)")
    # A model of a single layer has one line that is both; it is drawn as the surest.
    # The others are drawn alike: a deep model has more layers than there are colours to tell apart.
    named = {least_sure: svg.SERIES[1], surest: svg.ACCENT}
    highest = undecided
    for layer, series in layers.items():
        colour = named.get(layer, svg.MUTED)
        linewidth = 0.9
        if layer in named:
            linewidth = 1.8
        _plot(axes, series, smooth(series), color=colour, linewidth=linewidth)
        highest = max(highest, series.values.max())
    axes.axhline(undecided, color=svg.MUTED, linewidth=0.9, linestyle=_DASHED)
    axes.set_ylim(0, 1.1 * highest)
    axes.set_xlabel("step")
    labels = []
    for layer, colour in named.items():
        labels.append(EndLabel(layer.replace("-", " "), final[layer], colour))
    labels.append(EndLabel("undecided", undecided, svg.MUTED))
    svg.label_ends(axes, labels)

    title = f"{stage.name}: how sure the routers are"
    caption = (
        "One line per layer and place of experts; the surest and the least sure are named. "
        "Dashed: all experts equally likely."
    )
    return _render(figure, stage, "entropy", title, caption)


def draw_schedule(stage: StageData) -> Drawing | None:
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
    return _draw_panels(stage, "schedule", title, caption, panels)


def draw_speed(stage: StageData) -> Drawing | None:
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
    return _draw_panels(stage, "speed", title, caption, panels)


@mpl.rc_context(svg.STYLE)
def _draw_panels(stage: StageData, kind: str, title: str, caption: str, panels: Sequence[Panel]) -> Drawing | None:
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
            _use_log(axes, [series])
        svg.prepare_axes(axes, panel.title, percent=panel.metric == "data_wait")
        if panel.metric == "learning_rate":
            # A schedule has no noise, and smoothing would round its corners.
            _plot(axes, series, series.values, color=svg.ACCENT)
        else:
            _plot_raw_and_smooth(axes, series)
        if panel.lowest is not None:
            axes.set_ylim(bottom=panel.lowest)
        _mark_restarts(axes, stage)
    all_axes[-1].set_xlabel("step")
    return _render(figure, stage, kind, title, caption)
