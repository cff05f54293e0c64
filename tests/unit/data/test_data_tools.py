import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

TOOLS = Path(__file__).resolve().parents[3] / "tools"


def _run(monkeypatch: pytest.MonkeyPatch, tool: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(TOOLS / tool), run_name="__main__")
    return done.value.code


def test_tools_write_a_set_and_show_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sheet = tmp_path / "grids", tmp_path / "sheet.png"
    sizes = ("--train", "4", "--test", "3", "--cameras", "clear", "noisy")
    assert _run(monkeypatch, "make_digit_grids.py", "--out", str(out), *sizes) == 0
    assert sorted(path.name for path in out.iterdir()) == ["clear", "dataset.json", "noisy"]
    assert _run(monkeypatch, "make_digit_grids.py", "--out", str(out), *sizes) == 1
    assert "already exists" in capsys.readouterr().err
    data = str(out / "noisy" / "test.jsonl")
    assert _run(monkeypatch, "show_examples.py", "--data", data, "--count", "2", "--out", str(sheet)) == 0
    assert Image.open(sheet).width > 400
    assert "2 of 3 rows" in capsys.readouterr().out


def test_show_examples_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text("oops\n")
    assert _run(monkeypatch, "show_examples.py", "--data", str(tmp_path / "rows.jsonl")) == 1
    assert "rows.jsonl:1" in capsys.readouterr().err
