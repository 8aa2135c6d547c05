"""Error rate against encoder parameters, with intervals."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from launcher.inference.bootstrap import Interval
from launcher.report import svg

SIZE_IN = (7.2, 4.2)
# Names are written upwards at their model; as a share of the axis, what a line of them is wide.
_NAME_WIDTH = 0.022


@dataclass(frozen=True)
class Point:
    """A model: its name, the parameters of its encoder, its error rate."""

    name: str
    encoder_parameters: int
    rate: Interval


@mpl.rc_context(svg.STYLE)
def draw_comparison(points: Sequence[Point], name: str) -> Markup:
    """Draw the models of a comparison; those of about the same size are moved apart as far as their names need it."""
    largest = 0
    lowest_rate = math.inf
    highest_rate = 0.0
    for point in points:
        largest = max(largest, point.encoder_parameters)
        lowest_rate = min(lowest_rate, point.rate.low)
        highest_rate = max(highest_rate, point.rate.high)
    # On an even axis, rates that lie ten times below the highest would be told apart no longer.
    use_log = 0 < 10 * lowest_rate < highest_rate

    figure = Figure(figsize=SIZE_IN)
    axes = figure.subplots()
    # Before prepare_axes, which sets the ticks that suit the scale.
    if use_log:
        axes.set_yscale("log")
    svg.prepare_axes(axes, "character error rate, 95 % intervals", percent=True)
    placed = _spread(points, gap=_NAME_WIDTH * largest)
    # More models than colours begin again with the first: each has its name beside it.
    colours = itertools.cycle(svg.SERIES)
    for (point, x), colour in zip(placed, colours, strict=False):
        rate = point.rate
        axes.plot([x, x], [rate.low, rate.high], color=colour, linewidth=1.6)
        axes.plot(x, rate.value, "o", color=colour, markersize=6)
        axes.annotate(
            point.name,
            xy=(x, rate.high),
            xytext=(0, 5),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="bottom",
            color=colour,
            fontsize=8.5,
        )

    # The room above the highest interval is that of the names.
    axes.set_xlim(0, 1.08 * largest)
    if use_log:
        axes.set_ylim(0.7 * lowest_rate, 5 * highest_rate)
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    else:
        axes.set_ylim(0, 1.35 * highest_rate)
    axes.xaxis.set_major_formatter(svg.format_millions)
    axes.set_xlabel("encoder parameters")
    return svg.render(figure, name=f"compare-{name}", description="Error rate against encoder parameters")


def _spread(points: Sequence[Point], gap: float) -> list[tuple[Point, float]]:
    """Each point with its place on the axis of sizes.

    Models whose names would overlap form a group, which stands with `gap` between neighbours around its mean size.
    """
    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda point: point.encoder_parameters):
        group = [point]
        # A group that has grown may reach the one before it.
        while groups and _group_places(group, gap)[0] - _group_places(groups[-1], gap)[-1] < gap:
            group = groups.pop() + group
        groups.append(group)

    placed = []
    for group in groups:
        placed.extend(zip(group, _group_places(group, gap), strict=True))
    return placed


def _group_places(group: Sequence[Point], gap: float) -> list[float]:
    middle = np.mean([point.encoder_parameters for point in group])
    first = middle - gap * (len(group) - 1) / 2
    places = first + gap * np.arange(len(group))
    return places.tolist()
