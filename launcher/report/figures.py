"""The figures of the report. Each is narrow enough for a phone and says in its title what it shows.

A figure that has nothing to show is None; the page then says so in words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from launcher.report import formatting, svg
from launcher.report.results import ResultRow, ResultsTable
from launcher.report.run_data import Series, StageData

_MOST_POINTS = 500
_LAST_SHARE = 0.1
_WIDE, _NARROW = (svg.WIDE_IN, 2.9), (svg.NARROW_IN, 2.6)
_HEAT_LIMITS = (0.0, 0.4, 0.6, 0.8, 0.95, 1.05, 1.25, 1.6, 2.2, 1e9)


@dataclass(frozen=True)
class Drawing:
    """A figure with its title (what it says) and its caption (how to read it)."""

    title: str
    svg: Markup
    caption: str


def smooth(series: Series) -> np.ndarray:
    """A straight line fitted around each point to a twentieth of the points, within the range of the values.

    Unlike a mean it follows a trend to both ends of the series.
    """
    half = max(1, len(series) // 40)
    x, y = np.arange(len(series), dtype=float), series.values
    start, stop = np.maximum(0, np.arange(len(y)) - half), np.minimum(len(y), np.arange(len(y)) + half + 1)

    def window_mean(values: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(values)])
        return (total[stop] - total[start]) / (stop - start)

    mean_x, mean_y = window_mean(x), window_mean(y)
    variance = window_mean(x * x) - mean_x**2
    covariance = window_mean(x * y) - mean_x * mean_y
    slope = np.divide(covariance, variance, out=np.zeros_like(y), where=variance > 1e-9)
    return np.clip(mean_y + slope * (x - mean_x), y.min(), y.max())


def _plot(axes: Axes, series: Series, values: np.ndarray, **style: object) -> None:
    stride = max(1, len(series) // _MOST_POINTS)
    axes.plot(series.steps[::stride], values[::stride], **style)  # type: ignore[arg-type]


def _raw_and_smooth(axes: Axes, series: Series, colour: str = svg.ACCENT) -> None:
    _plot(axes, series, series.values, color=colour, alpha=0.28, linewidth=0.8)
    _plot(axes, series, smooth(series), color=colour)


def _use_log(axes: Axes, series: Sequence[Series]) -> None:
    values = np.concatenate([one.values for one in series])
    if values.min() > 0 and values.max() / values.min() > 30:
        axes.set_yscale("log")


def _mark_restarts(axes: Axes, stage: StageData) -> None:
    for step in stage.restart_steps:
        axes.axvline(step, color=svg.MUTED, linewidth=0.9, linestyle=(0, (2, 2)))


def _figure(
    stage: StageData, kind: str, title: str, caption: str, size_in: tuple[float, float], paint: Callable
) -> Drawing:
    return Drawing(title, svg.draw(f"{kind}-{stage.name}", f"{stage.name}: {title}", size_in, paint), caption)


def draw_loss(stage: StageData) -> Drawing | None:
    """The loss of every step, faint, the same smoothed, and the validations."""
    loss, validation = stage.series("loss"), stage.series("validation/loss")
    if not len(loss):
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _use_log(axes, [loss])
        svg.prepare_axes(axes, "loss")
        _raw_and_smooth(axes, loss)
        labels = [("training", smooth(loss)[-1], svg.ACCENT)]
        if len(validation):
            colour = svg.SERIES[1]
            axes.plot(validation.steps, validation.values, color=colour, marker="o", markersize=4.5, linewidth=1.2)
            labels.append(("validation", validation.values[-1], colour))
        _mark_restarts(axes, stage)
        axes.set_xlabel("step")
        svg.label_ends(axes, labels)

    title = f"Loss from {formatting.decimal(loss.values[0])} to {formatting.decimal(smooth(loss)[-1])}"
    restarts = " Dashed: restarts." if stage.restart_steps else ""
    caption = f"Faint: as logged. Bold: smoothed over a twentieth of the steps.{restarts}"
    return _figure(stage, "loss", title, caption, _NARROW, paint)


def draw_parts(stage: StageData) -> Drawing | None:
    """The parts that the loss is the sum of, smoothed."""
    parts = {key: stage.series(key) for key in [*stage.keys("loss/"), *stage.keys("distill/")]}
    parts = {key.removeprefix("loss/"): series for key, series in parts.items() if len(series)}
    if not parts:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _use_log(axes, list(parts.values()))
        svg.prepare_axes(axes, "part of the loss")
        labels = []
        for index, (name, series) in enumerate(parts.items()):
            colour = svg.SERIES[index % len(svg.SERIES)]
            _plot(axes, series, smooth(series), color=colour)
            labels.append((name, smooth(series)[-1], colour))
        axes.set_xlabel("step")
        svg.label_ends(axes, labels)

    title = f"The {len(parts)} parts of the loss" if len(parts) > 1 else "The part of the loss"
    return _figure(stage, "parts", title, "Smoothed over a twentieth of the steps.", _NARROW, paint)


def draw_validation(stage: StageData) -> Drawing | None:
    """The character error rate of the validation split."""
    rate = stage.series("validation/cer")
    if not len(rate):
        return None

    def paint(figure: Figure) -> None:
        axes = svg.prepare_axes(figure.subplots(), "character error rate", percent=True)
        axes.plot(rate.steps, rate.values, color=svg.SERIES[1], marker="o", markersize=4.5, linewidth=1.4)
        axes.set_ylim(0, 1.08 * rate.values.max() or 1)
        axes.set_xlim(0, 1.02 * max(rate.steps[-1], 1))
        axes.set_xlabel("step")
        svg.label_ends(axes, [(formatting.percent(rate.values[-1]), rate.values[-1], svg.SERIES[1])])

    best = rate.steps[int(rate.values.argmin())]
    title = f"{formatting.percent(rate.values.min())} of characters wrong at best, at step {best}"
    return _figure(stage, "validation", title, "Character error rate on the validation split.", _NARROW, paint)


def draw_masked_accuracy(stage: StageData) -> Drawing | None:
    """The share of masked frames of the validation split whose codes are predicted, and how evenly codes are used."""
    accuracy, entropy = stage.series("validation/masked_accuracy"), stage.series("validation/code_entropy")
    if not len(accuracy):
        return None
    curves = {"predicted": accuracy, "code entropy": entropy}

    def paint(figure: Figure) -> None:
        axes = svg.prepare_axes(figure.subplots(), "share", percent=True)
        labels = []
        for index, (name, series) in enumerate(curves.items()):
            colour = svg.SERIES[index]
            axes.plot(series.steps, series.values, color=colour, marker="o", markersize=4.5, linewidth=1.4)
            labels.append((f"{name} {formatting.percent(series.values[-1])}", series.values[-1], colour))
        axes.set_ylim(0, 1.02)
        axes.set_xlim(0, 1.02 * max(accuracy.steps[-1], 1))
        axes.set_xlabel("step")
        svg.label_ends(axes, labels)

    title = f"{formatting.percent(accuracy.values.max())} of masked frames predicted at best"
    caption = "On the validation split; code entropy is that of the codes to predict, over the most that it could be."
    return _figure(stage, "masked", title, caption, _NARROW, paint)


def draw_sizes(table: ResultsTable) -> Drawing | None:
    """Error rate against encoder parameters: the trade every run is about."""
    rows = [row for row in table.rows if row.encoder_parameters and row.cer is not None]
    if not rows:
        return None

    def paint(figure: Figure) -> None:
        axes = svg.prepare_axes(figure.subplots(), "character error rate", percent=True)
        right_end = 1.1 * max(row.encoder_parameters or 0 for row in rows)
        for row in rows:
            _place_model(axes, row, right_end)
        axes.set_xlim(0, right_end)
        axes.set_ylim(0, 1.25 * max(row.cer or 0 for row in rows) or 1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
        axes.set_xlabel("encoder parameters")

    title = "Fewer errors lie lower, fewer parameters further left"
    caption = "Both axes start at zero, so distances are to scale. Hollow: the teacher."
    return Drawing(title, svg.draw("sizes", "Error rate against encoder parameters", _WIDE, paint), caption)


def _place_model(axes: Axes, row: ResultRow, right_end: float) -> None:
    assert row.encoder_parameters is not None
    assert row.cer is not None
    filling = svg.PAPER if row.is_teacher else svg.ACCENT
    style = {"markersize": 9, "markeredgewidth": 2, "markeredgecolor": svg.ACCENT, "clip_on": False}
    axes.plot(row.encoder_parameters, row.cer, "o", markerfacecolor=filling, **style)
    is_left = row.encoder_parameters < 0.6 * right_end
    axes.annotate(
        f"{row.model}  {formatting.percent(row.cer)}",
        (row.encoder_parameters, row.cer),
        xytext=(9 if is_left else -9, 0),
        textcoords="offset points",
        ha="left" if is_left else "right",
        va="center",
        color=svg.INK,
    )


def average_load(stage: StageData) -> np.ndarray | None:
    """Load (layers, experts) in even shares, mean of the last tenth of the rows; None without experts."""
    layers = stage.expert_layers()
    loads = []
    for layer in layers:
        rows = [row[f"experts/{layer}/load"] for row in stage.rows if row.get(f"experts/{layer}/load")]
        last = rows[-max(1, round(len(rows) * _LAST_SHARE)) :]
        loads.append(np.mean(last, axis=0) * len(last[0]))
    if not loads:
        return None
    num_experts = max(len(load) for load in loads)
    return np.array([np.pad(load, (0, num_experts - len(load)), constant_values=np.nan) for load in loads])


def draw_load(stage: StageData) -> Drawing | None:
    """A heat map of the load, layers by experts, centred on the even share."""
    load_LE = average_load(stage)
    if load_LE is None:
        return None
    num_layers, num_experts = load_LE.shape
    height_in = min(9.0, 0.8 + max(0.22, 0.42 - 0.01 * num_layers) * num_layers)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        norm = BoundaryNorm(_HEAT_LIMITS, len(svg.HEAT))
        axes.pcolormesh(load_LE, cmap=ListedColormap(svg.HEAT), norm=norm, edgecolors=svg.PAPER, linewidth=2)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        names = [layer.replace("-", " ") for layer in stage.expert_layers()]
        axes.set_yticks(np.arange(num_layers) + 0.5, names)
        labelled = range(0, num_experts, -(-num_experts // 16))
        axes.set_xticks([index + 0.5 for index in labelled], [f"{index}" for index in labelled])
        axes.set_xlabel("expert")
        if num_experts <= 10:
            for layer, expert in np.argwhere(np.isfinite(load_LE)):
                text = f"{load_LE[layer, expert]:.2f}"
                axes.text(expert + 0.5, layer + 0.5, text, ha="center", va="center", fontsize=9)

    title = f"{stage.name}: the busiest expert takes {np.nanmax(load_LE):.2f} times an even share"
    dead = int((load_LE < 0.05).sum())
    caption = (
        f"Mean over the last tenth of the steps; 1 is an even share, blue is less, orange more. "
        f"{dead or 'No'} expert{'s get' if dead != 1 else ' gets'} less than a twentieth of an even share."
    )
    return _figure(stage, "load", title, caption, (svg.WIDE_IN, height_in), paint)


def draw_entropy(stage: StageData) -> Drawing | None:
    """How undecided the routers are: a frame's entropy over experts, one line per layer and place."""
    layers = {layer: stage.series(f"experts/{layer}/entropy") for layer in stage.expert_layers()}
    layers = {layer: series for layer, series in layers.items() if len(series)}
    if not layers:
        return None
    loads = (row.get(f"experts/{layer}/load") for row in reversed(stage.rows) for layer in layers)
    undecided = float(np.log(len(next(load for load in loads if load))))

    def paint(figure: Figure) -> None:
        axes = svg.prepare_axes(figure.subplots(), "entropy of a frame's expert probabilities (nats)")
        final = {layer: smooth(series)[-1] for layer, series in layers.items()}
        least, most = min(final, key=final.__getitem__), max(final, key=final.__getitem__)
        colours = {most: svg.SERIES[1], least: svg.ACCENT}
        for layer, series in layers.items():
            colour = colours.get(layer, svg.MUTED)
            _plot(axes, series, smooth(series), color=colour, linewidth=1.8 if layer in colours else 0.9)
        axes.axhline(undecided, color=svg.MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
        axes.set_ylim(0, 1.1 * max(undecided, *(series.values.max() for series in layers.values())))
        axes.set_xlabel("step")
        labels = [(layer.replace("-", " "), final[layer], colour) for layer, colour in colours.items()]
        svg.label_ends(axes, [*labels, ("undecided", undecided, svg.MUTED)])

    title = f"{stage.name}: how sure the routers are"
    caption = (
        "One line per layer and place of experts; the surest and the least sure are named. "
        "Dashed: all experts equally likely."
    )
    return _figure(stage, "entropy", title, caption, _WIDE, paint)


def _draw_panels(
    stage: StageData, kind: str, title: str, caption: str, panels: Sequence[tuple[str, str, float | None]]
) -> Drawing | None:
    """Panels on one step axis; each is (metric, its title, its lowest y or None for free)."""
    present = [(stage.series(key), name, lowest) for key, name, lowest in panels]
    present = [panel for panel in present if len(panel[0])]
    if not present:
        return None

    def paint(figure: Figure) -> None:
        stacked = np.ravel(figure.subplots(len(present), sharex=True))
        for axes, (series, name, lowest) in zip(stacked, present, strict=True):
            if lowest is None:
                _use_log(axes, [series])
            svg.prepare_axes(axes, name, percent=name.startswith("share"))
            if name == "learning rate":
                _plot(axes, series, series.values, color=svg.ACCENT)
            else:
                _raw_and_smooth(axes, series)
            if lowest is not None:
                axes.set_ylim(bottom=lowest)
            _mark_restarts(axes, stage)
        stacked[-1].set_xlabel("step")

    return _figure(stage, kind, title, caption, (svg.WIDE_IN, 0.5 + 1.3 * len(present)), paint)


def draw_schedule(stage: StageData) -> Drawing | None:
    """Learning rate and gradient norm."""
    rate = stage.series("learning_rate")
    title = f"{stage.name}: learning rate up to {formatting.decimal(rate.values.max())}" if len(rate) else stage.name
    caption = "Gradient norm before clipping; faint: as logged, bold: smoothed."
    panels = [("learning_rate", "learning rate", 0.0), ("grad_norm", "gradient norm", None)]
    return _draw_panels(stage, "schedule", title, caption, panels)


def draw_speed(stage: StageData) -> Drawing | None:
    """Throughput, time per step and waiting for data."""
    speed = stage.series("audio_s_per_s")
    typical = formatting.decimal(float(np.median(speed.values))) if len(speed) else formatting.MISSING
    title = f"{stage.name}: {typical} seconds of audio per second"
    panels = [
        ("audio_s_per_s", "seconds of audio per second", 0.0),
        ("step_s", "seconds per step", 0.0),
        ("data_wait", "share of the step spent waiting for data", 0.0),
    ]
    return _draw_panels(stage, "speed", title, "The title gives the median. Faint: as logged, bold: smoothed.", panels)
