"""The same charts as vector pictures for papers and slides: one SVG each, drawn by Matplotlib."""

import io

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from megatron_moe_grpo.evaluation.report_charts import (
    WRITTEN_COLUMNS,
    HeatMapChart,
    LineChart,
    Series,
    drawn_values,
)

COLOURS = ("#2f6690", "#c8803a", "#5b8c5a", "#8a6a9e", "#6b7785", "#a5443c")
CONTROL_COLOUR = "#8c959f"
MARK_COLOUR = "#c0392b"
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": "#1f2933",
    "xtick.color": "#5f6c7b",
    "ytick.color": "#5f6c7b",
    "axes.grid": True,
    "grid.color": "#e4e8ec",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "report",
    # A dollar sign in a row's words is no formula.
    "text.parse_math": False,
}


def line_picture(chart: LineChart) -> bytes:
    """SVG.  Long series: every step thin, a running mean thick."""
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(5.4, 2.9), layout="constrained")
        axes = canvas.add_subplot()
        for number, line in enumerate(chart.series):
            _draw_line(axes, line, number, chart.is_log)
        axes.set_xlabel(chart.x_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(chart.y_label)
        if chart.is_log:
            axes.set_yscale("log")
        else:
            axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        if chart.is_share:
            axes.set_ylim(-0.02, 1.02)
        if len(chart.series) > 1:
            axes.legend(fontsize=8.5, loc="best")
        return _svg(canvas)


def heat_map_picture(chart: HeatMapChart) -> bytes:
    """SVG: one map beside the other on one colour scale, marked cells framed."""
    num_rows = len(chart.maps[0].values)
    colours = "BrBG" if chart.is_two_sided else "Blues"
    highest = 1.0 if chart.is_two_sided else max(max(row) for each in chart.maps for row in each.values) or 1.0
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        canvas = Canvas(figsize=(max(4.5, 4.2 * len(chart.maps)), 1.3 + 0.42 * num_rows), layout="constrained")
        all_axes = canvas.subplots(1, len(chart.maps), squeeze=False)[0]
        for axes, each in zip(all_axes, chart.maps, strict=True):
            values = np.asarray(each.values)
            picture = axes.imshow(values, cmap=colours, vmin=0, vmax=highest, aspect="auto")
            axes.set_title(each.name, fontsize=10)
            axes.set_xlabel(chart.column_name)
            axes.set_ylabel(chart.row_name)
            axes.set_xticks(range(0, values.shape[1], -(-values.shape[1] // WRITTEN_COLUMNS)))
            axes.set_yticks(range(num_rows), chart.row_labels)
            axes.spines[:].set_visible(False)
            if chart.has_numbers:
                _write_values(axes, values, highest, chart.is_two_sided)
            for row, column in each.marked:
                frame = Rectangle(
                    (column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=MARK_COLOUR, linewidth=1.6
                )
                axes.add_patch(frame)
        if chart.has_numbers:
            canvas.colorbar(picture, ax=list(all_axes), label=chart.value_name, fraction=0.03, pad=0.01)
        return _svg(canvas)


def _draw_line(axes: Axes, line: Series, number: int, is_log: bool) -> None:
    steps, values, mean, _ = drawn_values(line, is_log)
    style = {
        "color": CONTROL_COLOUR if line.is_control else COLOURS[number % len(COLOURS)],
        "linestyle": "--" if line.is_control else "-",
    }
    if mean is None:
        axes.plot(steps, values, label=line.label, linewidth=1.8, marker="o", markersize=3.5, **style)
        return
    axes.plot(steps, values, linewidth=0.8, alpha=0.35, **style)
    axes.plot(steps, mean, label=line.label, linewidth=1.9, **style)


def _write_values(axes: Axes, values: np.ndarray, highest: float, is_two_sided: bool) -> None:
    if values.shape[1] > WRITTEN_COLUMNS:
        return
    for (row, column), value in np.ndenumerate(values):
        is_on_dark = abs(value - 0.5) > 0.3 if is_two_sided else value > 0.6 * highest
        colour = "white" if is_on_dark else "#1f2933"
        axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)


def _svg(canvas: Canvas) -> bytes:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
