"""Figures of the run report: self-contained SVG, each with its numbers as a table."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TABLE_ROWS = 21
# More points than pixels only make the file large.
DRAWN_POINTS = 600
LOG_FLOOR = 1e-9
COLOURS = ("#2f6690", "#c8803a", "#5b8c5a", "#8a6a9e", "#6b7785", "#a5443c")
CONTROL_COLOUR = "#8c959f"
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
}


@dataclass(frozen=True)
class Series:
    """One line of a chart; `is_control` draws it grey and dashed."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    is_control: bool = False


@dataclass(frozen=True)
class Table:
    """Numbers as text; `note` says what was left out."""

    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class ReportFigure:
    """A titled picture (data URI) and its table."""

    title: str
    caption: str
    image: str
    table: Table
    is_wide: bool = False


def line_figure(
    title: str, caption: str, y_label: str, series: Sequence[Series], *, is_log: bool = False, is_share: bool = False
) -> ReportFigure:
    """Values over steps.  Long series: every step thin, a running mean thick.  `is_share` fixes the axis to 0..1."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 2.9), layout="constrained")
        axes = figure.add_subplot()
        colours = _colours(series)
        windows = [_draw_line(axes, line, colour, is_log) for line, colour in zip(series, colours, strict=True)]
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(y_label)
        if is_log:
            axes.set_yscale("log")
        else:
            axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        if is_share:
            axes.set_ylim(-0.02, 1.02)
        if len(series) > 1:
            axes.legend(fontsize=8.5, loc="best")
        image = _data_uri(figure)
    if max(windows) > 1:
        caption += f" Thin: each step; thick: running mean of {max(windows)} steps."
    if not all(math.isfinite(value) for line in series for value in line.values):
        caption += " Values that are not finite are gaps in the lines."
    if is_log and any(value <= 0 for line in series for value in line.values):
        caption += f" Exact zeros are drawn at {LOG_FLOOR:g}."
    return ReportFigure(title, caption, image, _series_table(series))


def heat_map_figure(
    title: str, caption: str, maps: Sequence[tuple[str, np.ndarray]], row_name: str, row_labels: Sequence[str]
) -> ReportFigure:
    """Shares of experts (columns) by layer or task (rows): one map beside the other on one colour scale."""
    num_rows, num_experts = maps[0][1].shape
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(11, 1.3 + 0.42 * num_rows), layout="constrained")
        all_axes = figure.subplots(1, len(maps), squeeze=False)[0]
        highest = max(float(shares.max()) for _, shares in maps)
        for axes, (name, shares) in zip(all_axes, maps, strict=True):
            picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=highest, aspect="auto")
            axes.set_title(name, fontsize=10)
            axes.set_xlabel("expert")
            axes.set_ylabel(row_name)
            axes.set_xticks(_ticks(num_experts))
            axes.set_yticks(range(num_rows), row_labels)
            axes.spines[:].set_visible(False)
            _write_shares(axes, shares, highest)
        figure.colorbar(picture, ax=list(all_axes), label="share of selections", fraction=0.03, pad=0.01)
        image = _data_uri(figure)
    rows = [
        [name, label, *(f"{share:.3f}" for share in row)]
        for name, shares in maps
        for label, row in zip(row_labels, shares, strict=True)
    ]
    columns = ["evaluation", row_name, *(f"expert {number}" for number in range(num_experts))]
    return ReportFigure(title, caption, image, Table(columns, rows), is_wide=True)


def number_text(value: float) -> str:
    """Four significant digits; NaN and infinities by name."""
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of up to `window` values around each one; shorter at the ends, NaN where one of them is NaN."""
    weights = np.ones(window)
    return np.convolve(values, weights, mode="same") / np.convolve(np.ones(len(values)), weights, mode="same")


def _draw_line(axes: Axes, line: Series, colour: str, is_log: bool) -> int:
    """Returns the window of the running mean, 1 where there is none."""
    steps, values = np.asarray(line.steps), np.asarray(line.values, dtype=np.float64)
    if is_log:
        values = np.where(values <= 0, LOG_FLOOR, values)
    style = {"color": colour, "linestyle": "--" if line.is_control else "-"}
    if len(values) <= 40:
        axes.plot(steps, values, label=line.label, linewidth=1.8, marker="o", markersize=3.5, **style)
        return 1
    window = max(3, len(values) // 25) | 1
    thinned = slice(None, None, -(-len(values) // DRAWN_POINTS))
    axes.plot(steps[thinned], values[thinned], linewidth=0.8, alpha=0.35, **style)
    axes.plot(steps[thinned], running_mean(values, window)[thinned], label=line.label, linewidth=1.9, **style)
    return window


def _colours(series: Sequence[Series]) -> list[str]:
    plain = iter(COLOURS * (1 + len(series) // len(COLOURS)))
    return [CONTROL_COLOUR if line.is_control else next(plain) for line in series]


def _write_shares(axes: Axes, shares: np.ndarray, highest: float) -> None:
    if shares.shape[1] > 16:
        return
    for (row, column), share in np.ndenumerate(shares):
        axes.text(
            column,
            row,
            f"{100 * share:.0f} %",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share > 0.6 * highest else "#1f2933",
        )


def _ticks(count: int) -> range:
    return range(0, count, -(-count // 16))


def _series_table(series: Sequence[Series]) -> Table:
    by_step = [dict(zip(line.steps, line.values, strict=True)) for line in series]
    steps = sorted(set().union(*by_step))
    chosen = sorted({steps[round(i)] for i in np.linspace(0, len(steps) - 1, min(TABLE_ROWS, len(steps)))})
    rows = [[str(step), *(number_text(v[step]) if step in v else "" for v in by_step)] for step in chosen]
    note = f"{len(chosen)} of {len(steps)} steps; all are in metrics.jsonl" if len(chosen) < len(steps) else ""
    return Table(["step", *(line.label for line in series)], rows, note)


def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
