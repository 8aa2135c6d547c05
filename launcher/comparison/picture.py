"""Error rate against encoder parameters, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure

from launcher.comparison.bootstrap import Interval
from launcher.report import canvas

SIZE_IN = (7.2, 4.2)


@dataclass(frozen=True)
class Point:
    """A model: its name, the parameters of its encoder, its error rate."""

    name: str
    encoder_parameters: int
    rate: Interval


def draw_comparison(points: Sequence[Point], name: str) -> Markup:
    """Draw the models of a comparison; those of (nearly) the same size stand beside each other."""
    most = max(point.encoder_parameters for point in points)
    placed = _spread(points, gap=0.03 * most)

    def paint(figure: Figure) -> None:
        axes = canvas.prepare_axes(figure.subplots(), "character error rate, 95 % intervals", percent=True)
        for index, (point, x) in enumerate(placed):
            colour = canvas.SERIES[index % len(canvas.SERIES)]
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
            )
        axes.set_xlim(0, 1.08 * most)
        axes.set_ylim(0, 1.35 * max(point.rate.high for point in points))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
        axes.set_xlabel("encoder parameters")

    return canvas.draw(f"compare-{name}", "Error rate against encoder parameters", SIZE_IN, paint)


def _spread(points: Sequence[Point], gap: float) -> list[tuple[Point, float]]:
    """Each point with its place on the axis of sizes, moved right as far as it would hide behind another."""
    placed: list[tuple[Point, float]] = []
    for point in sorted(points, key=lambda point: point.encoder_parameters):
        least = placed[-1][1] + gap if placed else 0.0
        placed.append((point, max(point.encoder_parameters, least)))
    return placed
