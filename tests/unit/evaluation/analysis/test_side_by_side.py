"""Analyses beside each other: the numbers, the names, and what may not be compared."""

from pathlib import Path

import pytest
from analysis_values import analysis_values, dense_values, write_values

from megatron_moe_grpo.errors import ConfigError, DataError
from megatron_moe_grpo.evaluation.analysis.side_by_side import compare_analyses, side_by_side, write_side_by_side


def test_side_by_side_shows_each_number_once(tmp_path: Path) -> None:
    folders = [write_values(tmp_path / "before", dense_values()), write_values(tmp_path / "after", analysis_values())]
    numbers = side_by_side(folders).numbers()
    assert numbers.columns == ["", "before", "after"]
    rows = {row[0]: row[1:] for row in numbers.rows}
    assert rows["accuracy, top-K route"] == ["0.250", "0.500"]
    # Top-K answers one of two, a route both.
    assert rows["routing regret"] == ["-", "0.500"]
    assert rows["mean reward, last tenth"] == ["-", f"{(46 + 47 + 48 + 49 + 50) / 250:.3f}"]
    assert side_by_side(folders).accuracies().rows == [["count", "0.250", "0.250"], ["where", "-", "0.750"]]


def test_compare_analyses_is_an_aligned_text(tmp_path: Path) -> None:
    folders = [write_values(tmp_path / name, analysis_values()) for name in ("a", "b")]
    lines = compare_analyses(folders).splitlines()
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[1].startswith("accuracy, top-K route") and lines[1].endswith("0.500  0.500")
    assert sorted(tmp_path.glob("*/*")) == [folder / "analysis.json" for folder in folders]


def test_write_side_by_side_draws_every_analysis_that_has_the_section(tmp_path: Path) -> None:
    folders = [
        write_values(tmp_path / name, values) for name, values in (("a", analysis_values()), ("b", dense_values()))
    ]
    html = write_side_by_side(folders, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a beside b" in html
    assert html.count("<figure") == 7
    assert "b, utilisation: the model is dense" in html


def test_side_by_side_takes_whole_paths_where_folders_are_called_alike(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir(), (tmp_path / "y").mkdir()
    folders = [write_values(tmp_path / parent / "analysis", analysis_values()) for parent in ("x", "y")]
    assert side_by_side(folders).names == [str(folder) for folder in folders]


def test_side_by_side_refuses_other_rows_other_files_and_one_alone(tmp_path: Path) -> None:
    first = write_values(tmp_path / "a", analysis_values())
    other = analysis_values()
    other["rows"] = other["rows"] | {"sha256": "1" * 64}
    with pytest.raises(DataError, match="different rows"):
        side_by_side([first, write_values(tmp_path / "b", other)])
    with pytest.raises(DataError, match="at least two"):
        side_by_side([first])
    with pytest.raises(ConfigError, match="not the folder of an analysis"):
        side_by_side([first, tmp_path])
    for name, text in (("c", "{"), ("d", '{"format": 99}'), ("e", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "analysis.json").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="analyse again"):
            side_by_side([first, tmp_path / name])
