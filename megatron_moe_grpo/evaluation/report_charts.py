"""Charts of a page: what is drawn, the same numbers as a table, and the specification that Plotly draws from.

Colours, fonts and touch behaviour belong to the page (templates/page.js), because they change with the reader's theme
and screen; here stand names of roles.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TABLE_ROWS = 21
# More points than pixels only make the file large.
DRAWN_POINTS = 600
LOG_FLOOR = 1e-9
# Up to so many points each one is a dot; beyond, the points are thin and a running mean is thick.
DOTTED_POINTS = 40
# Wider maps have no room for a number in each cell.
WRITTEN_COLUMNS = 16

Spec = dict[str, Any]


@dataclass(frozen=True)
class Series:
    """One line of a chart; `is_control` draws it grey and dashed."""

    label: str
    steps: Sequence[float]
    values: Sequence[float | None]
    is_control: bool = False


@dataclass(frozen=True)
class Table:
    """Numbers as text; `note` says what was left out."""

    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class LineChart:
    """Values over steps (or whatever `x_label` says).  `is_share` fixes the axis to 0..1."""

    title: str
    caption: str
    y_label: str
    series: Sequence[Series]
    is_log: bool = False
    is_share: bool = False
    x_label: str = "step"


@dataclass(frozen=True)
class HeatMap:
    """One panel: values of columns by row, and the cells (row, column) that are marked."""

    name: str
    values: Sequence[Sequence[float]]
    marked: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class HeatMapChart:
    """Panels that share their rows, columns and colours.

    `is_two_sided`: values from 0 to 1 around 1/2; otherwise from 0 to the largest one.
    """

    title: str
    caption: str
    maps: Sequence[HeatMap]
    row_name: str
    row_labels: Sequence[str]
    value_name: str = "share of selections"
    column_name: str = "expert"
    is_two_sided: bool = False
    has_numbers: bool = True
    """Per cents in the cells where there is room, a scale of colours where there is none; False: neither."""


@dataclass(frozen=True)
class Figure:
    """A titled group of Plotly panels and their table; `is_wide` takes the page's whole width."""

    title: str
    caption: str
    panels: list[Spec]
    table: Table
    is_wide: bool = False
    heights: list[int] = field(default_factory=list)
    """Of each panel, CSS pixels: known before it is drawn, so that the page does not jump."""


def line_figure(chart: LineChart) -> Figure:
    """Long series: every point thin, a running mean thick."""
    traces, windows = [], [1]
    for number, line in enumerate(chart.series):
        drawn, window = _line_traces(line, number, chart)
        traces += drawn
        windows.append(window)
    y_axis: Spec = {"title": {"text": chart.y_label}}
    if chart.is_log:
        y_axis |= {"type": "log", "exponentformat": "power"}
    if chart.is_share:
        y_axis |= {"range": [-0.02, 1.02]}
    x_axis: Spec = {"title": {"text": chart.x_label}}
    places = [place for line in chart.series for place in line.steps]
    if max(places) - min(places) <= WRITTEN_COLUMNS:
        # Steps, layers and routes are whole: no mark stands between two of them.
        x_axis["dtick"] = 1
    layout = {"xaxis": x_axis, "yaxis": y_axis, "showlegend": len(chart.series) > 1}
    caption = chart.caption + _line_notes(chart, max(windows))
    return Figure(chart.title, caption, [{"data": traces, "layout": layout}], series_table(chart), heights=[300])


def heat_map_figure(chart: HeatMapChart) -> Figure:
    """Every panel on one scale of colours; numbers in the cells where there is room."""
    num_rows, num_columns = len(chart.maps[0].values), len(chart.maps[0].values[0])
    highest = 1.0 if chart.is_two_sided else max(max(row) for each in chart.maps for row in each.values)
    panels = [_heat_map_spec(chart, each, highest or 1.0) for each in chart.maps]
    rows = [
        [each.name, label, *(f"{value:.3f}" for value in row)]
        for each in chart.maps
        for label, row in zip(chart.row_labels, each.values, strict=True)
    ]
    columns = ["map", chart.row_name, *(f"{chart.column_name} {number}" for number in range(num_columns))]
    height = 96 + max(22, min(34, 640 // num_rows)) * num_rows
    is_wide = len(panels) > 1 or num_columns > WRITTEN_COLUMNS
    return Figure(chart.title, chart.caption, panels, Table(columns, rows), is_wide, [height] * len(panels))


def number_text(value: float | None) -> str:
    """Four significant digits; NaN and infinities by name; nothing for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of up to `window` values around each one; shorter at the ends, NaN where one of them is NaN."""
    weights = np.ones(window)
    return np.convolve(values, weights, mode="same") / np.convolve(np.ones(len(values)), weights, mode="same")


def drawn_values(line: Series, is_log: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, int]:
    """Steps and values that are drawn, the running mean (None for short series) and its window."""
    steps, values = np.asarray(line.steps), np.asarray(line.values, dtype=np.float64)
    if is_log:
        values = np.where(values <= 0, LOG_FLOOR, values)
    if len(values) <= DOTTED_POINTS:
        return steps, values, None, 1
    window = max(3, len(values) // 25) | 1
    thinned = slice(None, None, -(-len(values) // DRAWN_POINTS))
    return steps[thinned], values[thinned], running_mean(values, window)[thinned], window


def series_table(chart: LineChart) -> Table:
    """The chart's numbers, evenly chosen where there are many."""
    by_step = [dict(zip(line.steps, line.values, strict=True)) for line in chart.series]
    steps = sorted(set().union(*by_step))
    chosen = sorted({steps[round(i)] for i in np.linspace(0, len(steps) - 1, min(TABLE_ROWS, len(steps)))})
    rows = [[str(step), *(number_text(v[step]) if step in v else "" for v in by_step)] for step in chosen]
    note = f"{len(chosen)} of {len(steps)} steps; all are in metrics.jsonl" if len(chosen) < len(steps) else ""
    return Table([chart.x_label, *(line.label for line in chart.series)], rows, note)


def plain_text(text: str) -> str:
    """Plotly reads a few HTML tags in names; a row's words are no markup."""
    return html.escape(text, quote=False)


def _line_traces(line: Series, number: int, chart: LineChart) -> tuple[list[Spec], int]:
    """One trace, or two that go on and off together; and the window of the running mean."""
    steps, values, mean, window = drawn_values(line, chart.is_log)
    role = "control" if line.is_control else number
    shared = {"type": "scatter", "x": steps.tolist(), "name": plain_text(line.label), "legendgroup": str(number)}
    if mean is None:
        mode = "lines" if line.is_control else "lines+markers"
        return [shared | {"y": _json_numbers(values), "mode": mode, "meta": {"role": role}}], window
    thin = {"y": _json_numbers(values), "mode": "lines", "meta": {"role": role, "thin": True}, "showlegend": False}
    thick = {"y": _json_numbers(mean), "mode": "lines", "meta": {"role": role}, "hoverinfo": "skip"}
    return [shared | thin, shared | thick], window


def _line_notes(chart: LineChart, window: int) -> str:
    values = [value for line in chart.series for value in line.values if value is not None]
    notes = ""
    if window > 1:
        notes += f" Thin: each {chart.x_label}; thick: running mean of {window}."
    if not all(math.isfinite(value) for value in values):
        notes += " Values that are not finite are gaps in the lines."
    if chart.is_log and any(value <= 0 for value in values):
        notes += f" Exact zeros are drawn at {LOG_FLOOR:g}."
    return notes


def _heat_map_spec(chart: HeatMapChart, each: HeatMap, highest: float) -> Spec:
    num_columns = len(each.values[0])
    labels = [plain_text(label) for label in chart.row_labels]
    hover = f"{chart.row_name} %{{y}}, {chart.column_name} %{{x}}<br>{chart.value_name}: %{{z:.3f}}<extra></extra>"
    heat: Spec = {
        "type": "heatmap",
        "x": list(range(num_columns)),
        "y": labels,
        "z": [list(row) for row in each.values],
        "zmin": 0.0,
        "zmax": highest,
        "hovertemplate": hover,
        "meta": {"role": "two_sided" if chart.is_two_sided else "one_sided"},
    }
    if not chart.has_numbers:
        heat["showscale"] = False
    elif num_columns <= WRITTEN_COLUMNS:
        heat["showscale"] = False
        heat["text"] = [[f"{100 * value:.0f}" for value in row] for row in each.values]
        heat["texttemplate"] = "%{text}"
    layout = {
        "title": {"text": plain_text(each.name)},
        "xaxis": {"title": {"text": chart.column_name}, "dtick": -(-num_columns // 16), "showgrid": False},
        "yaxis": {"title": {"text": chart.row_name}, "autorange": "reversed", "type": "category", "showgrid": False},
        "showlegend": False,
        "shapes": [_mark(row, column) for row, column in each.marked],
    }
    return {"data": [heat], "layout": layout}


def _mark(row: int, column: int) -> Spec:
    """A frame around one cell; categories count from 0."""
    return {"type": "rect", "x0": column - 0.46, "x1": column + 0.46, "y0": row - 0.46, "y1": row + 0.46}


def _json_numbers(values: np.ndarray) -> list[float | None]:
    """JSON has no NaN: a gap in the line."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
