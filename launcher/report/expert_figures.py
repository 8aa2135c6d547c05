"""The figures of experts: how evenly they are used, when that changed, and what they are chosen for.

Shapes: L layers with experts, E experts, W windows of steps, C classes of frames.
"""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from launcher import formatting
from launcher.report import svg
from launcher.report.analysis_data import Choices, ExpertUse
from launcher.report.figures import DASHED, WIDE, Drawing, plot, render_stage, smooth
from launcher.report.model_colours import Look
from launcher.report.run_data import StageData, average_load
from launcher.report.svg import EndLabel

# Borders of the heat map's colours, in even shares: the middle one is what counts as even.
_HEAT_BORDERS = (0.0, 0.4, 0.6, 0.8, 0.95, 1.05, 1.25, 1.6, 2.2, 1e9)
# Of shares that are explained: none, then the warm half of the colours.
_SHARE_BORDERS = (0.0, 0.01, 0.03, 0.08, 0.2, 1e9)
_SHARE_COLOURS = svg.HEAT[4:]
# With more experts, the numbers in the cells of the heat map and below it would touch.
_MAX_EXPERTS_WITH_VALUES = 10
_MAX_EXPERT_TICKS = 16
# Below it, an expert of the heat map's caption is as good as unused.
_UNUSED_SHARE = 0.05
# Columns of a load over time, and the rows that a figure has room for.
_NUM_WINDOWS = 60
_MAX_TIME_ROWS = 120
# Less than this is the noise of counting.
_LEAST_EXPLAINED = 0.01
_PROPERTY_NAMES = {"letter": "letter", "language": "language", "position": "position", "loudness": "loudness"}
# What of a frame is known, as part of a sentence.
_PROPERTY_SENTENCES = {
    "letter": "which letter is spoken",
    "language": "the language",
    "position": "the position in the utterance",
    "loudness": "how loud it is",
}


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
    return render_stage(figure, stage, "load", title, caption)


@mpl.rc_context(svg.STYLE)
def draw_entropy(stage: StageData, look: Look) -> Drawing | None:
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

    figure = Figure(figsize=WIDE)
    axes = figure.subplots()
    svg.prepare_axes(axes, "entropy of a frame's expert probabilities (nats)")
    # A model of a single layer has one line that is both; it is drawn as the surest.
    # The others are drawn alike: a deep model has more layers than there are colours to tell apart.
    named = {least_sure: svg.INK, surest: look.colour}
    highest = undecided
    for layer, series in layers.items():
        colour = named.get(layer, svg.MUTED)
        linewidth = 0.9
        if layer in named:
            linewidth = 1.8
        plot(axes, series, smooth(series), color=colour, linewidth=linewidth)
        highest = max(highest, series.values.max())
    axes.axhline(undecided, color=svg.MUTED, linewidth=0.9, linestyle=DASHED)
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
    return render_stage(figure, stage, "entropy", title, caption)


@mpl.rc_context(svg.STYLE)
def draw_load_over_time(stage: StageData) -> Drawing | None:
    """The load of every expert of every layer from the first step to the last, in even shares.

    Of models with more experts than fit, the busiest expert of each layer.
    """
    loads_WE = {}
    last_step = stage.last_step
    for layer in stage.expert_layers():
        load_WE = _windowed_load(stage, f"experts/{layer}/load")
        if load_WE is not None:
            loads_WE[layer] = load_WE
    if not loads_WE:
        return None
    num_experts = sum(load_WE.shape[1] for load_WE in loads_WE.values())
    shows_all = num_experts <= _MAX_TIME_ROWS

    rows = []
    layer_starts = []
    for load_WE in loads_WE.values():
        layer_starts.append(len(rows) + len(layer_starts) * 0.6)
        columns = list(load_WE.T)
        if not shows_all:
            columns = [load_WE.max(axis=1)]
        rows.extend(columns)
    rows_per_layer = [load_WE.shape[1] if shows_all else 1 for load_WE in loads_WE.values()]
    height_in = min(11.0, 0.9 + 0.13 * len(rows) + 0.08 * len(loads_WE))
    figure = Figure(figsize=(svg.WIDE_IN, height_in))
    axes = figure.subplots()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)

    place = 0
    for start, num_rows in zip(layer_starts, rows_per_layer, strict=True):
        for offset in range(num_rows):
            _draw_runs(axes, rows[place], start + offset, last_step)
            place += 1
    middles = [start + num_rows / 2 for start, num_rows in zip(layer_starts, rows_per_layer, strict=True)]
    axes.set_yticks(middles, [layer.replace("-", " ") for layer in loads_WE])
    axes.set_ylim(layer_starts[-1] + rows_per_layer[-1], 0)
    axes.set_xlim(0, last_step)
    axes.xaxis.set_major_formatter(svg.format_step)
    axes.set_xlabel("step")

    title = f"{stage.name}: load of the experts of each layer over time"
    caption = "One row per expert, time from left to right; neutral is an even share, blue less, orange more."
    if not shows_all:
        title = f"{stage.name}: load of the busiest expert of each layer over time"
        caption = "Time from left to right; neutral is an even share, orange more."
    return render_stage(figure, stage, "load-time", title, caption)


def _windowed_load(stage: StageData, key: str) -> np.ndarray | None:
    """The mean load in even shares of equal windows of steps [W, E]; a window without rows has that of the one before.

    None where nothing was recorded.
    """
    rows = [row for row in stage.rows if row.get(key)]
    if not rows:
        return None
    steps = np.array([row["step"] for row in rows])
    # Of a run whose recipe was changed, the rows of the present number of experts.
    num_experts = len(rows[-1][key])
    load_NE = np.array([row[key] if len(row[key]) == num_experts else [np.nan] * num_experts for row in rows], float)
    num_windows = min(_NUM_WINDOWS, len(rows))
    window_N = np.minimum((steps - 1) * num_windows // max(1, stage.last_step), num_windows - 1)
    loads = []
    for window in range(num_windows):
        of_window = load_NE[window_N == window]
        if len(of_window) and np.isfinite(of_window).any():
            loads.append(np.nanmean(of_window, axis=0) * num_experts)
        elif loads:
            loads.append(loads[-1])
        else:
            loads.append(np.full(num_experts, np.nan))
    return np.array(loads)


def _draw_runs(axes: Axes, load_W: np.ndarray, top: float, last_step: int) -> None:
    """A row of a heat map; neighbours of one colour are one rectangle, which keeps the page small."""
    norm = BoundaryNorm(_HEAT_BORDERS, len(svg.HEAT))
    width = last_step / len(load_W)
    spans: list[tuple[float, float]] = []
    colours: list[str] = []
    for window, load in enumerate(load_W):
        if not np.isfinite(load):
            continue
        colour = svg.HEAT[int(norm(load))]
        start = window * width
        # Windows without a value leave a gap.
        if spans and colours[-1] == colour and abs(sum(spans[-1]) - start) < width / 2:
            spans[-1] = (spans[-1][0], start + width - spans[-1][0])
        else:
            spans.append((start, width))
            colours.append(colour)
    axes.broken_barh(spans, (top + 0.04, 0.92), facecolors=colours, linewidth=0)


def explained_share(counts_CE: np.ndarray) -> float:
    """How much of the choice of an expert follows from the class of a frame: mutual information over entropy.

    0: nothing; 1: the class decides. Corrected for the information that counting alone gives (Miller, 1955), never
    below 0.
    """
    total = counts_CE.sum()
    if total <= 0:
        return 0.0
    joint_CE = counts_CE / total
    classes_C = joint_CE.sum(axis=1)
    experts_E = joint_CE.sum(axis=0)
    expected_CE = classes_C[:, None] * experts_E
    is_used_CE = joint_CE > 0
    information = float((joint_CE[is_used_CE] * np.log(joint_CE[is_used_CE] / expected_CE[is_used_CE])).sum())
    used_E = experts_E[experts_E > 0]
    entropy = float(-(used_E * np.log(used_E)).sum())
    if entropy <= 0:
        return 0.0
    num_classes = int((classes_C > 0).sum())
    chance = (num_classes - 1) * (len(used_E) - 1) / (2 * total)
    return max(0.0, information - chance) / entropy


@mpl.rc_context(svg.STYLE)
def draw_specialisation(use: ExpertUse) -> Drawing | None:
    """How much of each layer's choice of experts follows from what is known of a frame: layers by properties."""
    properties = _properties_of(use)
    layers = list(use.layers)
    if not properties or not layers:
        return None
    share_LP = np.full((len(layers), len(properties)), np.nan)
    for row, layer in enumerate(layers):
        for column, name in enumerate(properties):
            if name in use.layers[layer]:
                share_LP[row, column] = explained_share(use.layers[layer][name].counts_CE)

    figure = Figure(figsize=(svg.WIDE_IN, min(9.0, 0.9 + max(0.22, 0.36 - 0.01 * len(layers)) * len(layers))))
    axes = figure.subplots()
    norm = BoundaryNorm(_SHARE_BORDERS, len(_SHARE_COLOURS))
    colours = ListedColormap(_SHARE_COLOURS)
    axes.pcolormesh(np.nan_to_num(share_LP), cmap=colours, norm=norm, edgecolors=svg.PAPER, linewidth=2)
    _prepare_map(axes, [layer.replace("-", " ") for layer in layers], [_PROPERTY_NAMES[name] for name in properties])
    for row, column in np.argwhere(np.isfinite(share_LP)):
        value = formatting.percent(float(share_LP[row, column]), 0)
        axes.text(column + 0.5, row + 0.5, value, ha="center", va="center", fontsize=9)
    row, column = np.unravel_index(int(np.nan_to_num(share_LP).argmax()), share_LP.shape)
    best = formatting.percent(float(share_LP[row, column]), 0)
    sentence = _PROPERTY_SENTENCES[properties[column]]
    title = f"{use.model}: {sentence} explains up to {best} of the choice of experts"
    caption = (
        "Share of the uncertainty about the expert of a frame that is gone once this is known of it (mutual "
        f"information over entropy); 100% would be a rule. From {use.num_utterances} utterances "
        f"({formatting.duration(use.seconds)})."
    )
    picture = svg.render(figure, name=f"specialisation-{use.model}", description=title)
    return Drawing(title, picture, caption)


def draw_choices(use: ExpertUse) -> list[Drawing]:
    """For each property, in the layer that goes by it most, how often its classes are sent to each expert."""
    drawings = []
    for name in _properties_of(use):
        shares = {}
        for layer, properties in use.layers.items():
            if name in properties:
                shares[layer] = explained_share(properties[name].counts_CE)
        layer = max(shares, key=shares.__getitem__)
        if shares[layer] >= _LEAST_EXPLAINED:
            drawings.append(_draw_choices(use.model, layer, name, use.layers[layer][name]))
    return drawings


@mpl.rc_context(svg.STYLE)
def _draw_choices(model: str, layer: str, name: str, choices: Choices) -> Drawing:
    counts_CE = choices.counts_CE
    is_used_C = counts_CE.sum(axis=1) > 0
    counts_CE = counts_CE[is_used_C]
    classes = [label for label, is_used in zip(choices.classes, is_used_C, strict=True) if is_used]
    share_CE = counts_CE / counts_CE.sum(axis=1, keepdims=True)
    experts_E = counts_CE.sum(axis=0) / counts_CE.sum()
    # An expert that nothing was sent to has no share to compare with.
    lift_CE = np.divide(share_CE, experts_E, out=np.zeros_like(share_CE), where=experts_E > 0)
    # Places and levels have an order of their own; letters stand beside those that are treated alike.
    if name in ("letter", "language"):
        favourite_C = lift_CE.argmax(axis=1)
        order = sorted(range(len(classes)), key=lambda row: (favourite_C[row], -lift_CE[row].max()))
        lift_CE = lift_CE[order]
        classes = [classes[row] for row in order]

    num_classes, num_experts = lift_CE.shape
    figure = Figure(figsize=(svg.WIDE_IN, 0.9 + 0.2 * num_classes))
    axes = figure.subplots()
    norm = BoundaryNorm(_HEAT_BORDERS, len(svg.HEAT))
    axes.pcolormesh(lift_CE, cmap=ListedColormap(svg.HEAT), norm=norm, edgecolors=svg.PAPER, linewidth=1.5)
    ticks = [str(expert) for expert in range(num_experts)]
    stride = int(np.ceil(num_experts / _MAX_EXPERT_TICKS))
    ticks = [tick if number % stride == 0 else "" for number, tick in enumerate(ticks)]
    _prepare_map(axes, [svg.shortened(label) for label in classes], ticks)
    axes.set_xlabel("expert")
    if num_experts <= _MAX_EXPERTS_WITH_VALUES:
        for row, expert in np.ndindex(lift_CE.shape):
            value = f"{lift_CE[row, expert]:.1f}"
            axes.text(expert + 0.5, row + 0.5, value, ha="center", va="center", fontsize=8)
    title = f"{model}, {layer.replace('-', ' ')}: experts by {_PROPERTY_NAMES[name]}"
    caption = "How often frames of a row are sent to an expert, over how often all frames are: 1 is no preference."
    if name == "letter":
        caption += " A frame is of the letter that CTC puts nearest to it, or in a pause."
    picture = svg.render(figure, name=f"choices-{name}-{model}", description=title)
    return Drawing(title, picture, caption)


def _properties_of(use: ExpertUse) -> list[str]:
    """The properties that some layer has, in the order in which they are shown."""
    properties = []
    for name in _PROPERTY_NAMES:
        if any(name in layer for layer in use.layers.values()):
            properties.append(name)
    return properties


def _prepare_map(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Axes of a heat map: the first row at the top, no lines but the borders of its cells."""
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    # pcolormesh has the corners of the cells at whole numbers, so the middle of a cell is half a unit further.
    axes.set_yticks(np.arange(len(rows)) + 0.5, list(rows))
    axes.set_xticks(np.arange(len(columns)) + 0.5, list(columns))
