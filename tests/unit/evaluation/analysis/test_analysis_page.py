"""The page and the pictures of an analysis: complete, escaped, and fair about what is left out."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from analysis_values import analysis_values, dense_values
from PIL import Image

from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.evaluation.analysis.analyse import Analysis
from megatron_moe_grpo.evaluation.analysis.folder import prepare_folder, write_analysis


def rows(folder: Path, count: int) -> list[Row]:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    visual = VisualFiles((folder / "picture.png",))
    return [Row(f"example-{number}", "?", (), "A", "count", (visual,)) for number in range(count)]


def write(folder: Path, values: dict) -> str:
    prepare_folder(folder / "out")
    page = write_analysis(Analysis(values, rows(folder, len(values["examples"])), 8), folder / "out")
    return page.read_text(encoding="utf-8")


def test_write_analysis_leaves_numbers_page_and_pictures(tmp_path: Path) -> None:
    values = analysis_values()
    html = write(tmp_path, values)
    assert json.loads((tmp_path / "out" / "analysis.json").read_text(encoding="utf-8")) == values
    pictures = sorted(path.stem for path in (tmp_path / "out" / "figures").glob("*.svg"))
    assert len(pictures) == 11 + len(values["examples"])
    assert {"utilisation", "expert_ratio_by_task", "reward_mean", "guidance_masks", "routing_of_example_8"} <= set(
        pictures
    )
    for title in ("Best of several routes", "Token-level expert utilisation", "Expert ratio by task", "Guidance mask"):
        assert f"<h3>{title}</h3>" in html
    assert html.count('<article class="example"') == html.count("data:image/png") == 8
    assert html.count('data-outcome="right"') == 4
    # 11 charts, of which one has two panels and one, the masks, two; three panels an example.
    specs = json.loads(re.search(r'id="page-charts">(.*?)</script>', html, re.DOTALL).group(1))
    assert len(specs) == html.count('class="plot"') == 13 + 3 * 8


def test_write_analysis_of_a_dense_model_says_what_it_lacks(tmp_path: Path) -> None:
    html = write(tmp_path, dense_values())
    assert "utilisation: the model is dense: it has no experts to choose." in html
    assert 'class="plot"' not in html
    assert list((tmp_path / "out" / "figures").iterdir()) == []


def test_write_analysis_escapes_what_rows_say(tmp_path: Path) -> None:
    html = write(tmp_path, analysis_values(question="</script><script>alert(1)</script><img src=x onerror=alert(2)>"))
    assert "<script>alert" not in html and "<img src=x" not in html
    assert html.count("&lt;script&gt;alert(1)") == 8


def test_prepare_folder_writes_over_an_analysis_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, dense_values())
    prepare_folder(tmp_path / "out")
    with pytest.raises(ConfigError, match="is not an analysis"):
        prepare_folder(tmp_path)
    with pytest.raises(ConfigError, match="is not an analysis"):
        prepare_folder(tmp_path / "picture.png")
