import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_moe_grpo.data.counting_files import write_counting
from megatron_moe_grpo.data.counting_scenes import CountingSettings, make_scenes
from megatron_moe_grpo.data.drawn_questions import DrawnQuestion, write_drawn_set
from megatron_moe_grpo.data.geometry_figures import make_figures
from megatron_moe_grpo.data.geometry_files import write_geometry
from megatron_moe_grpo.data.sources import load_rows
from megatron_moe_grpo.errors import DataError

COUNTS = {"pretrain": 3, "train": 6, "test": 4}


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "counting"
    write_counting(out, COUNTS, seed=3)
    return out


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "geometry"
    write_geometry(out, COUNTS, seed=3)
    return out


def _lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_write_counting_writes_each_split_of_both_worlds(counting: Path) -> None:
    assert sorted(file.name for file in (counting / "clear").glob("*.jsonl")) == [
        "pretrain.jsonl", "pretrain_choice.jsonl", "test.jsonl", "test_choice.jsonl", "train.jsonl",
        "train_choice.jsonl",
    ]  # fmt: skip
    assert not (counting / "shifted" / "pretrain.jsonl").exists()
    for world in ("clear", "shifted"):
        rows, scenes = _lines(counting / world / "train.jsonl"), make_scenes("train", 6, 3, world)
        assert [row["problem"] for row in rows] == [scene.wanted.problem for scene in scenes]
        assert [row["solution"] for row in rows] == [str(scene.count) for scene in scenes]
        assert {row["problem_type"] for row in rows} == {"counting"}


def test_choice_rows_ask_the_same_of_the_same_picture(counting: Path) -> None:
    for row, choice in zip(
        _lines(counting / "clear" / "train.jsonl"), _lines(counting / "clear" / "train_choice.jsonl"), strict=True
    ):
        letter = choice["solution"].removeprefix("<answer>").removesuffix("</answer>")
        assert choice["options"]["ABCD".index(letter)] == f"{letter}. {row['solution']}"
        assert {**choice, "options": None, "solution": None} == {**row, "options": None, "solution": None}


def test_write_geometry_shows_the_same_figures_brighter_and_darker(geometry: Path) -> None:
    clear, shifted = (_lines(geometry / look / "test.jsonl") for look in ("clear", "shifted"))
    assert clear == shifted
    figures = make_figures("test", 4, seed=3)
    assert [row["solution"] for row in clear] == [figure.case.solution for figure in figures]
    assert [row["rationale"] for row in clear] == [figure.case.rationale for figure in figures]
    bright, dark = (np.asarray(Image.open(geometry / look / clear[0]["image"])) for look in ("clear", "shifted"))
    np.testing.assert_array_equal(np.rint(0.8 * bright), dark)


def test_rows_load_as_users_rows_do(counting: Path, geometry: Path) -> None:
    rows = load_rows(counting / "clear" / "test_choice.jsonl").rows
    assert [len(row.options) for row in rows] == [4] * 4
    for file in (counting / "shifted" / "test.jsonl", geometry / "clear" / "test.jsonl"):
        raw = _lines(file)
        assert [(row.solution, row.options, row.rationale) for row in load_rows(file).rows] == [
            (row["solution"], (), row["rationale"]) for row in raw
        ]


def test_pictures_have_the_side_asked_for(tmp_path: Path) -> None:
    write_counting(tmp_path / "c", {"test": 1}, seed=0, settings=CountingSettings(max_count=4), side=48)
    write_geometry(tmp_path / "g", {"test": 1}, seed=0, side=128)
    assert Image.open(tmp_path / "c" / "shifted" / "images" / "test" / "00000.png").size == (48, 48)
    assert Image.open(tmp_path / "g" / "clear" / "images" / "test" / "00000.png").size == (128, 128)


def test_the_same_arguments_give_the_same_bytes(counting: Path, geometry: Path, tmp_path: Path) -> None:
    write_counting(tmp_path / "c", COUNTS, seed=3)
    write_geometry(tmp_path / "g", COUNTS, seed=3)
    assert _files(tmp_path / "c") == _files(counting)
    assert _files(tmp_path / "g") == _files(geometry)


def test_dataset_json_counts_and_checks_every_file(counting: Path) -> None:
    summary = json.loads((counting / "dataset.json").read_text(encoding="utf-8"))
    assert summary["counts"] == {
        "clear/pretrain": 3, "clear/train": 6, "clear/test": 4, "shifted/train": 6, "shifted/test": 4,
    }  # fmt: skip
    assert set(summary["sha256"]) == {str(file.relative_to(counting)) for file in counting.rglob("*.jsonl")}
    for name, digest in summary["sha256"].items():
        assert hashlib.sha256((counting / name).read_bytes()).hexdigest() == digest


def test_write_drawn_set_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    bad = DrawnQuestion(picture, "How many?", "5", "counting", "", options=("1", "2", "3", "4"))
    with pytest.raises(ValueError, match="not in tuple"):
        write_drawn_set(tmp_path / "out", {("clear", "train"): [bad]}, {})
    assert list(tmp_path.iterdir()) == []


def test_write_drawn_set_refuses_an_existing_folder(counting: Path) -> None:
    with pytest.raises(DataError, match="already exists"):
        write_drawn_set(counting, {}, {})


@pytest.mark.parametrize(("counts", "side"), [({"train": 0}, 64), ({}, 64), ({"train": 1}, 16)])
def test_files_refuse_counts_and_sides_that_cannot_be(tmp_path: Path, counts: dict, side: int) -> None:
    for write in (write_counting, write_geometry):
        with pytest.raises(DataError, match="cannot be used"):
            write(tmp_path / "x", counts, seed=0, side=side)
