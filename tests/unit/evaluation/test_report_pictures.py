"""Pictures of charts: whole SVGs that load nothing, the same twice."""

import re
from xml.etree import ElementTree

from megatron_moe_grpo.evaluation.report_charts import HeatMap, HeatMapChart, LineChart, Series
from megatron_moe_grpo.evaluation.report_pictures import heat_map_picture, line_picture

LINES = LineChart("t", "c", "y", [Series("a $x$", range(100), range(100)), Series("b", [0, 1], [1.0, None])])
MAPS = HeatMapChart("t", "c", [HeatMap("a", [[0.2, 0.8], [0.5, 0.5]], [(1, 0)])], "task", ["how $", "where $"])
MARK = "#c0392b"


def test_pictures_are_whole_and_load_nothing() -> None:
    for picture in (line_picture(LINES), heat_map_picture(MAPS)):
        text = picture.decode("utf-8")
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert all(link.startswith(("#", "data:")) for link in re.findall(r'href="([^"]*)"', text))
        assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", text))


def test_pictures_are_the_same_bytes_each_time() -> None:
    assert line_picture(LINES) == line_picture(LINES)
    assert heat_map_picture(MAPS) == heat_map_picture(MAPS)


def test_heat_map_picture_frames_the_marked_cell() -> None:
    unmarked = HeatMapChart("t", "c", [HeatMap("a", [[0.2, 0.8], [0.5, 0.5]])], "task", ["x", "y"])
    assert heat_map_picture(MAPS).count(MARK.encode()) == 1
    assert MARK.encode() not in heat_map_picture(unmarked)


def test_line_picture_draws_logarithms_and_shares() -> None:
    # Half of it at 0, which has no logarithm.
    small = [Series("a", [1, 2], [0.0, 1e-6], is_control=True)]
    assert line_picture(LineChart("t", "c", "y", small, is_log=True)) != line_picture(LineChart("t", "c", "y", small))
    part = [Series("a", [1, 2], [0.4, 0.6])]
    assert line_picture(LineChart("t", "c", "y", part, is_share=True)) != line_picture(LineChart("t", "c", "y", part))
