import json
from pathlib import Path

import pytest

from megatron_moe_grpo.data.counting_files import write_counting
from megatron_moe_grpo.data.geometry_files import write_geometry
from megatron_moe_grpo.data.mixed_rows import mix_rows
from megatron_moe_grpo.data.sources import load_rows
from megatron_moe_grpo.errors import DataError


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    write_counting(tmp_path / "counting", {"train": 3}, seed=0)
    write_geometry(tmp_path / "geometry", {"train": 2}, seed=0)
    return [tmp_path / "counting" / "clear" / "train.jsonl", tmp_path / "geometry" / "clear" / "train.jsonl"]


def test_mix_rows_takes_the_files_in_turn(sources: list[Path], tmp_path: Path) -> None:
    assert mix_rows(sources, tmp_path / "both.jsonl") == 5
    mixed = load_rows(tmp_path / "both.jsonl").rows
    assert [row.problem_type for row in mixed] == ["counting", "geometry", "counting", "geometry", "counting"]
    assert [row.id for row in mixed[:3]] == ["0-train-00000", "1-train-00000", "0-train-00001"]
    alone = load_rows(sources[1]).rows
    assert [(row.problem, row.solution, row.visuals) for row in mixed[1:4:2]] == [
        (row.problem, row.solution, row.visuals) for row in alone
    ]


def test_mix_rows_changes_nothing_else_of_a_row(sources: list[Path], tmp_path: Path) -> None:
    mix_rows(sources[::-1], tmp_path / "both.jsonl")
    first = json.loads((tmp_path / "both.jsonl").read_text().splitlines()[0])
    source = json.loads(sources[1].read_text().splitlines()[0])
    assert {**first, "id": source["id"], "image": source["image"]} == source


@pytest.mark.parametrize("case", ["one source", "exists", "outside"])
def test_mix_rows_refuses_what_readers_would(sources: list[Path], tmp_path: Path, case: str) -> None:
    out = {"one source": tmp_path / "x.jsonl", "exists": sources[0], "outside": tmp_path / "counting" / "x.jsonl"}[case]
    with pytest.raises(DataError, match="cannot be mixed"):
        mix_rows(sources[:1] if case == "one source" else sources, out)
