import json
import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[3] / "tools"


def _run(monkeypatch: pytest.MonkeyPatch, tool: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(TOOLS / tool), run_name="__main__")
    return done.value.code


@pytest.mark.parametrize(
    ("tool", "arguments", "expected"),
    [
        ("make_counting.py", ("--max-count", "4", "--colours", "red", "blue"), {"max_count": 4}),
        (
            "make_geometry.py",
            ("--kinds", "circle", "isosceles", "--angle-step", "5"),
            {"kinds": ["circle", "isosceles"]},
        ),
    ],
)
def test_tools_write_a_set_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tool: str,
    arguments: tuple[str, ...], expected: dict,
) -> None:  # fmt: skip
    out = tmp_path / "set"
    sizes = ("--out", str(out), "--train", "3", "--test", "2", "--pretrain", "4", "--seed", "5")
    assert _run(monkeypatch, tool, *sizes, *arguments) == 0
    summary = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    assert summary["counts"] == {
        "clear/pretrain": 4, "clear/train": 3, "clear/test": 2, "shifted/train": 3, "shifted/test": 2,
    }  # fmt: skip
    assert {key: summary[key] for key in expected} == expected
    assert summary["seed"] == 5
    assert _run(monkeypatch, tool, *sizes, *arguments) == 1
    assert "already exists" in capsys.readouterr().err


def test_make_counting_says_what_cannot_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "make_counting.py", "--out", str(tmp_path / "x"), "--colours", "red") == 1
    assert "no scene can be drawn" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
