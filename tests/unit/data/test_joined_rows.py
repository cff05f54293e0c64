"""Joined files name every row once and find every picture."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from megatron_moe_grpo.data.joined_rows import join_rows
from megatron_moe_grpo.data.sources import load_rows
from megatron_moe_grpo.errors import DataError

ROW = {"problem": "How many?", "options": ["A. 1", "B. 2"], "solution": "A"}


def write(file: Path, *rows: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_join_rows_keeps_every_row_and_its_picture(tmp_path: Path) -> None:
    one = write(tmp_path / "a" / "clear" / "train.jsonl", ROW | {"id": "0", "image": "x/0.png"}, ROW | {"id": "1"})
    other = write(tmp_path / "b" / "train.jsonl", ROW | {"id": "0", "images": ["0.png", "1.png"]})
    for picture in ("a/clear/x/0.png", "b/0.png", "b/1.png"):
        (tmp_path / picture).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / picture)
    out = tmp_path / "both.jsonl"
    assert join_rows([one, other], out) == 3
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in found] == ["0-0", "0-1", "1-0"]
    assert found[0]["image"] == "a/clear/x/0.png" and "image" not in found[1]
    assert found[2]["images"] == ["b/0.png", "b/1.png"]
    # The reader decodes every picture.
    assert len(load_rows(out).rows) == 3


def test_join_rows_overwrites_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ROW)
    with pytest.raises(DataError, match="already exists"):
        join_rows([file], file)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_join_rows_names_a_bad_line(text: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ROW)
    file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl, line 2"):
        join_rows([file], tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="does not exist"):
        join_rows([tmp_path / "absent.jsonl"], tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
