"""One page: what stands in its scripts can neither end them nor be read wrongly, and is whole or not there."""

import base64
import gzip
import json
import re
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from megatron_moe_grpo.evaluation.report_charts import Figure, Table
from megatron_moe_grpo.evaluation.report_page import Section, write_page


def page_of(path: Path, value: object) -> str:
    figure = Figure("t", "c", [{"data": [{"name": value}]}], Table(["a"], [["1"]]), heights=[300])
    section = Section("Some charts", "", [figure])
    values = {"names": ["a"], "rows": {"num_rows": 1, "file": "f"}, "tables": [], "sections": [section], "missing": []}
    return write_page(path, "side_by_side.html.j2", **values).read_text(encoding="utf-8")


def test_write_page_lets_no_value_end_a_script(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script>"
    html = page_of(tmp_path / "page.html", name)
    assert html.count("</script>") == 3 and "<script>alert" not in html
    specs = re.search(r'id="page-charts">(.*?)</script>', html, re.DOTALL).group(1)
    assert json.loads(specs) == [{"data": [{"name": name}]}]


def test_write_page_holds_the_whole_library(tmp_path: Path) -> None:
    html = page_of(tmp_path / "page.html", "a")
    packed = re.search(r'id="page-plotly">(.*?)</script>', html, re.DOTALL).group(1)
    assert gzip.decompress(base64.b64decode(packed)).decode("utf-8") == get_plotlyjs()
    # Measured: 2.0 MB.
    assert len(html) < 2_500_000


def test_write_page_refuses_numbers_that_a_browser_cannot_read(tmp_path: Path) -> None:
    page_of(tmp_path / "page.html", "a")
    with pytest.raises(ValueError, match="JSON"):
        page_of(tmp_path / "page.html", float("nan"))
    # The earlier page is still there, and nothing else.
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
