"""Error rate against encoder parameters, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from launcher.comparison.bootstrap import Interval
from launcher.report import svg

SIZE_IN = (7.2, 4.2)


@dataclass(frozen=True)
class Point:
    """A model: its name, the parameters of its encoder, its error rate."""

    name: str
    encoder_parameters: int
    rate: Interval


def draw_comparison(points: Sequence[Point], name: str) -> Markup:
    """Draw the models of a comparison; those of about the same size are moved apart as far as their names need it."""
    most = max(point.encoder_parameters for point in points)
    placed = _spread(points, gap=0.022 * most)
    least, largest = min(point.rate.low for point in points), max(point.rate.high for point in points)
    far_apart = 0 < 10 * least < largest

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_yscale("log" if far_apart else "linear")
        svg.prepare_axes(axes, "character error rate, 95 % intervals", percent=True)
        for index, (point, x) in enumerate(placed):
            colour = svg.SERIES[index % len(svg.SERIES)]
            axes.plot([x, x], [point.rate.low, point.rate.high], color=colour, linewidth=1.6)
            axes.plot(x, point.rate.value, "o", color=colour, markersize=6)
            axes.annotate(
                point.name,
                (x, point.rate.high),
                xytext=(0, 5),
                textcoords="offset points",
                rotation=90,
                ha="center",
                va="bottom",
                color=colour,
                fontsize=8.5,
            )
        axes.set_xlim(0, 1.08 * most)
        if far_apart:
            axes.set_ylim(0.7 * least, 5 * largest)
            axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        else:
            axes.set_ylim(0, 1.35 * largest)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
        axes.set_xlabel("encoder parameters")

    return svg.draw(f"compare-{name}", "Error rate against encoder parameters", SIZE_IN, paint)


def _spread(points: Sequence[Point], gap: float) -> list[tuple[Point, float]]:
    """Each point with its place on the axis of sizes: of places `gap` apart those nearest to the sizes, in the sense of
    least squares (isotonic regression by pooling neighbours)."""
    ordered = sorted(points, key=lambda point: point.encoder_parameters)
    pools: list[tuple[float, int]] = []  # mean and number of sizes, each less its place's share of the gaps
    for place, point in enumerate(ordered):
        pools.append((point.encoder_parameters - place * gap, 1))
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (before, many), (mean, number) = pools[-2:]
            pools[-2:] = [((before * many + mean * number) / (many + number), many + number)]
    means = [mean for mean, number in pools for _ in range(number)]
    return [(point, mean + place * gap) for place, (point, mean) in enumerate(zip(ordered, means, strict=True))]
