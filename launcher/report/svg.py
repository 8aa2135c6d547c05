"""Matplotlib figures as inline SVG whose colours are those of the page.

A figure is drawn in the page's light colours. In the SVG each becomes the CSS variable of its role, so that one drawing
serves light, dark and print. Text stays text. No pyplot, and no setting outlives a drawing.

    @mpl.rc_context(svg.STYLE)
    def draw(...):
        figure = Figure(figsize=(svg.NARROW_IN, 2.6))
        ...
        return svg.render(figure, "loss-teacher", "The loss of the teacher")
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from launcher import formatting
from launcher.plain_text import printable

# The light values of colours.css, by role (a test holds both equal). A colour in a drawing stands for its role,
# so no two roles may have the same.
INK = "#1c1e22"
MUTED = "#5f6369"
RULE = "#dedad2"
PAPER = "#fdfcf9"
SERIES = ("#0b62a4", "#c24e00", "#00795c", "#8b3f96", "#776300", "#4d5561")
ACCENT = SERIES[0]
HEAT = ("#6fa8d6", "#94bfe2", "#b9d5eb", "#dbe7f0", "#efece4", "#f7e3cf", "#f4cfa9", "#efb67e", "#e89a52")

CSS_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"}
for _index, _colour in enumerate(SERIES):
    CSS_VARIABLES[_colour] = f"--series-{_index}"
for _index, _colour in enumerate(HEAT):
    CSS_VARIABLES[_colour] = f"--heat-{_index}"

STYLE: dict[Any, Any] = {
    # Text stays text, and not outlines: it can be searched, and takes the font of the page.
    "svg.fonttype": "none",
    # Names of models and stages may hold dollar signs.
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    # No frame: the lines of the grid say enough.
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
    "figure.constrained_layout.use": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "xtick.major.size": 3,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    # Points that lie on a line within half a pixel become one stroke, which makes pages smaller.
    "path.simplify_threshold": 0.5,
}
WIDE_IN = 4.8
NARROW_IN = 3.8

# A line of text at the end of a curve, and what title and step axis take from a figure's height.
LABEL_HEIGHT_IN = 0.19
AROUND_AXES_IN = 0.65
# Longer ones would take the width that the curves need.
MAX_LABEL_CHARACTERS = 26

_SVG_NAMESPACE = "http://www.w3.org/2000/svg"
# ElementTree would write the prefixes ns0 and ns1, which HTML does not understand.
ElementTree.register_namespace("", _SVG_NAMESPACE)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


class EndLabel(NamedTuple):
    """A text that names a curve at its last value."""

    text: str
    value: float
    colour: str


def render(figure: Figure, name: str, description: str) -> Markup:
    """The <svg> element of a figure. `name` must be unique in its page, `description` is read to the blind."""
    output = io.StringIO()
    no_metadata = {"Creator": None, "Date": None, "Format": None, "Type": None}
    # The ids of clip paths and markers are hashes of their content and of this: unique, and the same on every writing.
    with mpl.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(output, metadata=no_metadata)
    # Matplotlib escapes markup in names, and leaves control characters, which are no XML.
    root = ElementTree.fromstring(printable(output.getvalue()))  # noqa: S314  Matplotlib's own, just written

    for element in root.iter():
        # Matplotlib numbers its groups alike in every figure (axes_1, line2d_3), and nothing refers to them.
        if element.tag == f"{{{_SVG_NAMESPACE}}}g":
            element.attrib.pop("id", None)
        style = element.get("style")
        if style is not None:
            for colour, variable in CSS_VARIABLES.items():
                style = style.replace(colour, f"var({variable})")
            element.set("style", style.replace("'DejaVu Sans'", "var(--sans)"))

    # The page's column decides how large a figure is; viewBox keeps its proportions.
    del root.attrib["width"]
    del root.attrib["height"]
    root.set("role", "img")
    root.set("aria-label", printable(description))
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704  ElementTree escapes what is text


def standalone(svg: str) -> str:
    """A rendered <svg> element as a file of its own: it brings the colours of the page, light and dark."""
    colours = (Path(__file__).parent / "colours.css").read_text(encoding="utf-8")
    opening_tag, content = svg.split(">", maxsplit=1)
    return f"{opening_tag}><style>\n{colours}svg {{ background: var(--paper) }}\n</style>{content}"


def prepare_axes(axes: Axes, title: str, percent: bool = False) -> None:
    """Few ticks with readable numbers; the unit stands in the title above the axes, not along them."""
    axes.set_title(title)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(format_step)
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(4))
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())
    if percent:
        axes.yaxis.set_major_formatter(format_percent)
    else:
        axes.yaxis.set_major_formatter(format_decimal)


# Matplotlib calls these with the value of a tick and its place in the row of ticks.


def format_step(value: float, _: float) -> str:
    # A comma is the decimal point of many languages, so a narrow no-break space stands between thousands.
    return f"{value:,.0f}".replace(",", "\u202f")


def format_percent(value: float, _: float) -> str:
    return f"{100 * value:.3g}%"


def format_decimal(value: float, _: float) -> str:
    return formatting.decimal(value)


def format_millions(value: float, _: float) -> str:
    """A tick of an axis of parameters."""
    return f"{value / 1e6:g} M"


def label_ends(axes: Axes, labels: Sequence[EndLabel]) -> None:
    """Writes each label right of the axes at its value, moved up or down where it would cover its neighbour."""
    ordered = sorted(labels, key=lambda label: label.value)
    heights = label_heights(axes, [label.value for label in ordered])
    for label, height in zip(ordered, heights, strict=True):
        axes.text(
            1.015,
            height,
            shortened(label.text),
            color=label.colour,
            transform=axes.transAxes,
            va="center",
            fontsize=9.5,
        )


def label_heights(axes: Axes, values: Sequence[float]) -> list[float]:
    """Where labels of these ascending values stand, as shares of the axes' height, so that none covers another."""
    # Asking for the limits applies the autoscaling that matplotlib puts off; the transform needs them.
    axes.get_ylim()
    to_axes = axes.transData + axes.transAxes.inverted()
    figure = axes.get_figure(root=True)
    assert figure is not None
    gap = LABEL_HEIGHT_IN / (figure.get_figheight() - AROUND_AXES_IN)

    # Upwards: each label stands at its value, or a line above the label below it.
    heights: list[float] = []
    lowest = -float("inf")
    for value in values:
        _, height = to_axes.transform((0, value))
        heights.append(max(height, lowest))
        lowest = heights[-1] + gap

    # Downwards: those that were pushed out at the top come back, and push down those below them.
    highest = 1.0
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], highest)
        highest = heights[index] - gap
    return heights


def height_for(num_labels: int, lowest_in: float) -> float:
    """The height of a figure in inches that has room for so many labels below each other."""
    return max(lowest_in, AROUND_AXES_IN + LABEL_HEIGHT_IN * (num_labels + 1))


def shortened(text: str) -> str:
    """A name that leaves the figure its room; the tables of the page have it whole."""
    if len(text) <= MAX_LABEL_CHARACTERS:
        return text
    half = MAX_LABEL_CHARACTERS // 2
    # Seeds and variants stand at the end of names.
    return f"{text[:half]}…{text[-half:]}"
