"""Matplotlib figures as inline SVG whose colours are those of the page.

A figure is drawn in stand-in colours, one per role; in the SVG each becomes a CSS variable, so that one
drawing serves light, dark and print. Text stays text. No pyplot, and no setting outlives a drawing.
"""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from launcher.report import formatting

INK, MUTED, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#110101", "#120101", "#130101", "#140101", "#150101", "#160101")
ACCENT = SERIES[0]
HEAT = tuple(f"#2{step}0101" for step in range(9))

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    PAPER: "--paper",
    **{colour: f"--series-{index}" for index, colour in enumerate(SERIES)},
    **{colour: f"--heat-{index}" for index, colour in enumerate(HEAT)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titlecolor": MUTED,
    "axes.xmargin": 0.01,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "figure.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "xtick.major.size": 3,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "path.simplify_threshold": 0.5,
}
WIDE_IN, NARROW_IN = 4.8, 3.8
_REFERENCE = re.compile(r"""(?:url\(#|href="#)([^")]+)""")
_ID = re.compile(r' id="([^"]+)"')


def draw(name: str, description: str, size_in: tuple[float, float], paint: Callable[[Figure], Any]) -> Markup:
    """Draws a figure (width, height) and returns its <svg> element; `name` keeps ids apart on one page."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size_in, layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return Markup(_inline(buffer.getvalue(), name, description))


def standalone(svg: str) -> str:
    """A drawn <svg> element as a file of its own: it brings the colours of the page, light and dark."""
    colours = (Path(__file__).parent / "colours.css").read_text(encoding="utf-8")
    end = svg.index(">") + 1
    style = f"<style>\n{colours}svg {{ background: var(--paper) }}\n</style>\n"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return svg[: end - 1].replace("<svg", f"<svg {spaces}") + ">" + style + svg[end:]


def _inline(svg: str, name: str, description: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    used = set(_REFERENCE.findall(svg))
    svg = _ID.sub(lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", svg)
    svg = _REFERENCE.sub(lambda match: match[0].replace(f"#{match[1]}", f"#{name}-{match[1]}"), svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = svg.replace("'DejaVu Sans'", "var(--sans)")
    label = Markup.escape(description)
    opening = re.search(r'viewBox="[^"]+"', svg)
    assert opening is not None
    return f'<svg {opening[0]} role="img" aria-label="{label}">' + svg[svg.index(">") + 1 :]


def prepare_axes(axes: Axes, title: str, percent: bool = False) -> Axes:
    """Few ticks with readable numbers; the unit stands in the title above the axes, not along them."""
    axes.set_title(title)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", "\u202f")))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(4))
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())
    written = (lambda value, _: f"{100 * value:.3g}%") if percent else (lambda value, _: formatting.decimal(value))
    axes.yaxis.set_major_formatter(FuncFormatter(written))
    return axes


def label_ends(axes: Axes, labels: list[tuple[str, float, str]]) -> None:
    """Writes each (text, value, colour) right of the axes, at its value or moved apart from the next."""
    axes.get_ylim()  # Lets the limits settle, which the transform below needs.
    figure = axes.get_figure(root=True)
    assert figure is not None
    gap = 0.19 / (figure.get_figheight() - 0.65)
    to_fraction = axes.transData + axes.transAxes.inverted()
    placed: list[tuple[float, str, str]] = sorted(
        (float(to_fraction.transform((0, value))[1]), text, colour) for text, value, colour in labels
    )
    heights = [height for height, _, _ in placed]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + gap)
    surplus = max(0.0, heights[-1] - 1.0) if heights else 0.0
    heights = [height - surplus for height in heights]
    for index in range(len(heights) - 2, -1, -1):
        heights[index] = min(heights[index], heights[index + 1] - gap)
    for height, (_, text, colour) in zip(heights, placed, strict=True):
        axes.text(1.015, height, text, color=colour, transform=axes.transAxes, va="center", fontsize=9.5)
