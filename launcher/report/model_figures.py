"""The figures that set all models of a run side by side. A model has one colour and one mark in all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from launcher import formatting
from launcher.inference.bootstrap import Interval
from launcher.report import svg
from launcher.report.figures import Drawing, plot, smooth, use_log
from launcher.report.model_colours import ModelLooks
from launcher.report.run_data import StageData
from launcher.report.svg import EndLabel

_HEIGHT_IN = 3.1
# From the axes to the names right of them, as a share of the width of the axes.
_LEADER_END = 1.02
_NAME_START = 1.035
_LOG_SPAN = 10


@dataclass(frozen=True)
class Trade:
    """What an error rate is set against: its name as part of an id, the label of its axis and how its ticks read."""

    kind: str
    label: str
    title: str
    format_tick: Callable[[float, float], str]


@dataclass(frozen=True)
class TradePoint:
    """A model: what it takes, and the errors that it makes for that; without an interval where none is known."""

    model: str
    is_teacher: bool
    amount: float
    error_rate: float
    interval: Interval | None


def format_giga(value: float, _: float) -> str:
    return f"{value / 1e9:g} G"


def format_tera(value: float, _: float) -> str:
    return formatting.decimal(value / 1e12)


PARAMETERS = Trade(
    "parameters",
    "encoder parameters",
    "Errors against size: fewer errors lie lower, smaller models further left",
    svg.format_millions,
)
COMPUTE = Trade(
    "compute",
    "operations per second of audio (whole model)",
    "Errors against the computing of recognition",
    format_giga,
)
TRAINING = Trade(
    "training-compute",
    "10¹² operations of the model's own training",
    "Errors against the computing of training",
    format_tera,
)


@mpl.rc_context(svg.STYLE)
def draw_trade(trade: Trade, points: Sequence[TradePoint], looks: ModelLooks, page_part: str = "") -> Drawing | None:
    """Error rates against what the models take, with intervals; names stand at the right, a line leads to each.

    `page_part` tells apart the figures of one kind on a page.
    """
    if not points:
        return None
    figure = Figure(figsize=(svg.WIDE_IN, svg.height_for(len(points), _HEIGHT_IN)))
    axes = figure.subplots()
    lowest = min(_ends(point)[0] for point in points)
    highest = max(_ends(point)[1] for point in points)
    # On an even axis, rates that lie ten times below the highest would be told apart no longer.
    use_log = 0 < _LOG_SPAN * lowest < highest
    if use_log:
        axes.set_yscale("log")
    svg.prepare_axes(axes, "character error rate", percent=True)
    for point in points:
        look = looks.look(point.model)
        if point.interval is not None:
            ends = [point.interval.low, point.interval.high]
            axes.plot([point.amount, point.amount], ends, color=look.colour, linewidth=1.6)
        filling = look.colour
        if point.is_teacher:
            filling = svg.PAPER
        axes.plot(
            point.amount,
            point.error_rate,
            look.mark,
            markersize=7.5,
            markeredgewidth=1.8,
            markeredgecolor=look.colour,
            markerfacecolor=filling,
            # A model without errors lies on the axis.
            clip_on=False,
        )
    right_end = 1.08 * max(point.amount for point in points)
    axes.set_xlim(0, right_end)
    if use_log:
        axes.set_ylim(0.8 * lowest, 1.25 * highest)
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    else:
        # Models without any error leave no height to scale the axis by.
        axes.set_ylim(0, 1.08 * highest or 1)
    # Long names leave the axes half of the figure.
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(trade.format_tick)
    axes.set_xlabel(trade.label)

    ordered = sorted(points, key=lambda point: point.error_rate)
    heights = svg.label_heights(axes, [point.error_rate for point in ordered])
    to_data = axes.transAxes + axes.transData.inverted()
    for point, height in zip(ordered, heights, strict=True):
        end_x, end_y = to_data.transform((_LEADER_END, height))
        axes.plot(
            [point.amount, end_x],
            [point.error_rate, end_y],
            color=svg.RULE,
            linewidth=0.9,
            clip_on=False,
            zorder=0.5,
        )
        name = f"{svg.shortened(point.model)}  {formatting.percent(point.error_rate)}"
        colour = looks.look(point.model).colour
        axes.text(_NAME_START, height, name, color=colour, transform=axes.transAxes, va="center", fontsize=9.5)

    caption = "Both axes start at zero, so distances are to scale."
    if use_log:
        caption = "The axis of errors is logarithmic."
    if any(point.is_teacher for point in points):
        caption += " Hollow: the teacher."
    if any(point.interval for point in points):
        caption += " Bars: 95% intervals."
    picture = svg.render(
        figure, name=f"trade-{trade.kind}-{page_part}", description=f"Error rate against {trade.label}"
    )
    return Drawing(trade.title, picture, caption)


def _ends(point: TradePoint) -> tuple[float, float]:
    """From where to where a model's errors are drawn."""
    if point.interval is None:
        return point.error_rate, point.error_rate
    return min(point.error_rate, point.interval.low), max(point.error_rate, point.interval.high)


@dataclass(frozen=True)
class Overview:
    """A metric of all stages in one figure."""

    metric: str
    label: str
    title: str
    caption: str
    percent: bool = False
    is_smoothed: bool = True


OVERVIEWS = (
    Overview("loss", "loss", "Losses of all stages", "Smoothed. A student's loss has parts that a teacher's lacks."),
    Overview(
        "validation/cer",
        "character error rate",
        "Validation of all stages",
        "Errors in characters on the validation split, as measured.",
        percent=True,
        is_smoothed=False,
    ),
    Overview(
        "grad_norm",
        "gradient norm",
        "Gradient norms of all stages",
        "Before clipping, smoothed.",
    ),
)


@mpl.rc_context(svg.STYLE)
def draw_overview(overview: Overview, stages: Sequence[StageData], looks: ModelLooks) -> Drawing | None:
    """One metric of every stage that recorded it, over steps; None where none has."""
    curves = {}
    for stage in stages:
        series = stage.series(overview.metric)
        if len(series):
            curves[stage.name] = series
    if not curves:
        return None
    figure = Figure(figsize=(svg.WIDE_IN, svg.height_for(len(curves), _HEIGHT_IN)))
    axes = figure.subplots()
    # A rate is shown from zero on, so that heights compare as rates do.
    if not overview.percent:
        use_log(axes, list(curves.values()))
    svg.prepare_axes(axes, overview.label, percent=overview.percent)
    labels = []
    for name, series in curves.items():
        look = looks.look(name)
        values = series.values
        if overview.is_smoothed:
            values = smooth(series)
        marker = ""
        # A line needs two points.
        if len(series) == 1:
            marker = look.mark
        plot(axes, series, values, color=look.colour, linestyle=look.dashes, marker=marker, linewidth=1.6)
        labels.append(EndLabel(name, values[-1], look.colour))
    if overview.percent:
        axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("step")
    svg.label_ends(axes, labels)
    picture = svg.render(figure, name=f"overview-{overview.metric}", description=overview.title)
    return Drawing(overview.title, picture, overview.caption)
