import hashlib
import json
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

from megatron_moe_grpo.data import digit_grid_files
from megatron_moe_grpo.data.digit_grid_files import write_digit_grids
from megatron_moe_grpo.data.digit_grids import make_grids
from megatron_moe_grpo.data.sources import load_rows
from megatron_moe_grpo.errors import DataError

CAMERAS = ("clear", "washed_out", "noisy")


@pytest.fixture(scope="module")
def grids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "grids"
    write_digit_grids(out, num_train=12, num_test=6, seed=7)
    return out


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_write_digit_grids_lays_out_the_files(grids: Path) -> None:
    names = set(_contents(grids))
    expected = {"dataset.json"}
    for camera in CAMERAS:
        expected |= {f"{camera}/train.jsonl", f"{camera}/test.jsonl"}
        expected |= {f"{camera}/images/train/{index:05d}.png" for index in range(12)}
        expected |= {f"{camera}/images/test/{index:05d}.png" for index in range(6)}
    assert names == expected


def test_write_digit_grids_gives_the_same_bytes_twice(grids: Path, tmp_path: Path) -> None:
    write_digit_grids(tmp_path / "again", num_train=12, num_test=6, seed=7)
    assert _contents(tmp_path / "again") == _contents(grids)
    write_digit_grids(tmp_path / "other", num_train=12, num_test=6, seed=8)
    assert _contents(tmp_path / "other")["clear/train.jsonl"] != _contents(grids)["clear/train.jsonl"]


def test_write_digit_grids_records_what_it_wrote(grids: Path) -> None:
    summary = json.loads((grids / "dataset.json").read_text())
    assert (summary["seed"], summary["counts"], summary["scale"]) == (7, {"train": 12, "test": 6}, 2)
    assert len(summary["sha256"]) == 6
    for name, checksum in summary["sha256"].items():
        assert hashlib.sha256((grids / name).read_bytes()).hexdigest() == checksum


@pytest.mark.parametrize("camera", CAMERAS)
def test_written_rows_read_back_as_the_questions_drawn(grids: Path, camera: str) -> None:
    rows = load_rows(grids / camera / "test.jsonl").rows
    questions = [grid.question for grid in make_grids("test", 6, seed=7)]
    for row, question in zip(rows, questions, strict=True):
        assert (row.problem, row.problem_type) == (question.problem, question.kind)
        assert [option[3:] for option in row.options] == list(question.options)
        assert "ABCD".index(row.solution) == question.answer


def test_written_pictures_are_what_the_camera_makes_of_the_grid(grids: Path) -> None:
    for index, grid in enumerate(make_grids("test", 6, seed=7)):
        pictures = {camera: Image.open(grids / camera / f"images/test/{index:05d}.png") for camera in CAMERAS}
        assert {(picture.mode, picture.size) for picture in pictures.values()} == {("L", (32, 32))}
        small = {camera: np.asarray(picture)[::2, ::2] / 255 for camera, picture in pictures.items()}
        assert all(
            np.array_equal(np.asarray(picture)[::2, ::2], np.asarray(picture)[1::2, 1::2])
            for picture in pictures.values()
        )
        # Half a grey level of 255: 0.00196.
        np.testing.assert_allclose(small["clear"], grid.picture, atol=0.002)
        np.testing.assert_allclose(small["washed_out"], 0.35 * grid.picture + 0.3, atol=0.002)
        # Mean of clipped noise is not 0; far from clear, yet pulled towards it.
        assert 0.1 < np.abs(small["noisy"] - grid.picture).mean() < 0.4
        assert np.corrcoef(small["noisy"].ravel(), grid.picture.ravel())[0, 1] > 0.5


def test_noise_of_a_picture_does_not_depend_on_the_other_cameras_or_counts(grids: Path, tmp_path: Path) -> None:
    write_digit_grids(tmp_path / "alone", num_train=3, num_test=2, seed=7, cameras=("noisy",))
    for name in ("noisy/images/train/00002.png", "noisy/images/test/00001.png"):
        assert (tmp_path / "alone" / name).read_bytes() == (grids / name).read_bytes()


def test_write_digit_grids_leaves_nothing_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> NoReturn:
        raise OSError("disk full")

    monkeypatch.setattr(digit_grid_files, "_to_png", fail)
    with pytest.raises(OSError, match="disk full"):
        write_digit_grids(tmp_path / "grids", num_train=3, num_test=2, seed=7)
    assert list(tmp_path.iterdir()) == []


def test_write_digit_grids_never_overwrites(grids: Path) -> None:
    before = _contents(grids)
    with pytest.raises(DataError, match="already exists"):
        write_digit_grids(grids, num_train=3, num_test=2, seed=8)
    assert _contents(grids) == before


@pytest.mark.parametrize(
    "change",
    [
        {"num_train": 0},
        {"num_test": -1},
        {"scale": 0},
        {"cameras": ()},
        {"cameras": ("clear", "clear")},
        {"cameras": ("../up",)},
    ],
)
def test_write_digit_grids_refuses_impossible_settings(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(DataError):
        write_digit_grids(tmp_path / "grids", **({"num_train": 1, "num_test": 1, "seed": 0} | change))
    assert list(tmp_path.iterdir()) == []
