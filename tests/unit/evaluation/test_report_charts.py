"""Charts: what Plotly is told, the table beside it, long series, and values that are not finite."""

import json

import numpy as np
import pytest

from megatron_moe_grpo.evaluation.report_charts import (
    HeatMap,
    HeatMapChart,
    LineChart,
    Series,
    heat_map_figure,
    line_figure,
    running_mean,
)


def test_line_figure_table_keeps_first_and_last_step() -> None:
    steps = list(range(1, 1001))
    figure = line_figure(LineChart("t", "c", "y", [Series("a", steps, steps), Series("b", [1000], [0.5])]))
    assert [figure.table.rows[0], figure.table.rows[-1]] == [["1", "1", ""], ["1000", "1000", "0.5"]]
    assert figure.table.note == "21 of 1000 steps; all are in metrics.jsonl"


def test_line_figure_size_does_not_grow_with_the_run() -> None:
    steps = list(range(25_000))
    values = np.random.default_rng(0).normal(size=25_000).tolist()
    figure = line_figure(LineChart("t", "c", "y", [Series("a", steps, values)]))
    # Measured: 21 kB.
    assert len(json.dumps(figure.panels)) < 40_000


def test_line_figure_says_where_zeros_of_a_log_axis_are() -> None:
    figure = line_figure(LineChart("t", "c", "y", [Series("a", [1, 2], [0.0, 1e-6])], is_log=True))
    assert "zeros are drawn at 1e-09" in figure.caption
    assert figure.panels[0]["data"][0]["y"] == [1e-9, 1e-6]


def test_line_figure_leaves_gaps_where_values_are_not_finite() -> None:
    values = [1.0, float("nan"), float("inf"), None, 2.0]
    figure = line_figure(LineChart("t", "c", "y", [Series("a", range(5), values)]))
    assert figure.panels[0]["data"][0]["y"] == [1.0, None, None, None, 2.0]
    assert "not finite" in figure.caption
    assert [row[1] for row in figure.table.rows] == ["1", "nan", "inf", "", "2"]


def test_line_figure_of_a_long_series_has_a_thin_and_a_thick_line_that_go_together() -> None:
    figure = line_figure(LineChart("t", "c", "y", [Series("a", range(100), np.arange(100.0))]))
    thin, thick = figure.panels[0]["data"]
    assert thin["meta"] == {"role": 0, "thin": True} and thick["meta"] == {"role": 0}
    assert (thin["showlegend"], thin["legendgroup"], thick["legendgroup"]) == (False, "0", "0")
    assert "running mean of 5" in figure.caption


def test_line_figure_marks_no_place_between_two_layers() -> None:
    few, many = (
        line_figure(LineChart("t", "c", "y", [Series("a", steps, steps)])).panels[0]["layout"]["xaxis"]
        for steps in ([0, 1, 2, 3], [0, 50, 100])
    )
    assert few["dtick"] == 1 and "dtick" not in many


def test_heat_map_figure_marks_cells_and_shares_one_scale() -> None:
    maps = [HeatMap("first", [[0.2, 0.8], [0.5, 0.5]], [(1, 0)]), HeatMap("second", [[0.4, 0.6], [0.1, 0.9]])]
    figure = heat_map_figure(HeatMapChart("t", "c", maps, "layer", ["0", "1"]))
    first, second = figure.panels
    assert [panel["data"][0]["zmax"] for panel in figure.panels] == [0.9, 0.9]
    assert first["data"][0]["text"] == [["20", "80"], ["50", "50"]]
    # Row 1, column 0.
    assert first["layout"]["shapes"] == [{"type": "rect", "x0": -0.46, "x1": 0.46, "y0": 0.54, "y1": 1.46}]
    assert second["layout"]["shapes"] == []
    assert figure.table.rows[1] == ["first", "1", "0.500", "0.500"]
    assert figure.is_wide


def test_heat_map_figure_of_many_experts_has_a_scale_instead_of_numbers() -> None:
    figure = heat_map_figure(HeatMapChart("t", "c", [HeatMap("a", [[1 / 64] * 64] * 3)], "layer", ["0", "1", "2"]))
    assert "text" not in figure.panels[0]["data"][0] and "showscale" not in figure.panels[0]["data"][0]
    assert len(figure.table.columns) == 66


def test_heat_map_figure_of_zeros_has_a_scale() -> None:
    figure = heat_map_figure(HeatMapChart("t", "c", [HeatMap("a", [[0.0, 0.0]])], "layer", ["0"]))
    assert figure.panels[0]["data"][0]["zmax"] == 1.0


def test_running_mean_is_shorter_at_the_ends() -> None:
    assert running_mean(np.array([1.0, 2.0, 6.0, 3.0]), 3).tolist() == pytest.approx([1.5, 3.0, 11 / 3, 4.5])
