"""Parquet files and shards, names of the hub, and which reader a name gets."""

from pathlib import Path
from typing import Any, NoReturn

import datasets
import pyarrow
import pytest
from embedded_pictures import picture_bytes
from pyarrow import parquet

from megatron_moe_grpo.data.files.opened import raw_rows
from megatron_moe_grpo.data.files.parquet_file import ROWS_AT_ONCE, shards
from megatron_moe_grpo.data.sources import load_rows
from megatron_moe_grpo.errors import DataError


def write_numbers(file: Path, numbers: list[int]) -> Path:
    file.parent.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table({"number": numbers}), file)
    return file


def read(source: Path | str, data_format: Any = "auto") -> list[tuple[int, dict[str, Any]]]:
    return [(number, read_row()) for number, read_row in raw_rows(str(source), data_format)]


def test_parquet_rows_are_numbered_through_all_shards(tmp_path: Path) -> None:
    many = ROWS_AT_ONCE + 3
    write_numbers(tmp_path / "s" / "train-00001-of-00002.parquet", [many])
    write_numbers(tmp_path / "s" / "train-00000-of-00002.parquet", list(range(many)))
    assert read(tmp_path / "s") == [(number + 1, {"number": number}) for number in range(many + 1)]


def test_shards_refuses_folders_that_are_not_one_whole_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no parquet file"):
        shards(tmp_path)
    write_numbers(tmp_path / "train-00000-of-00002.parquet", [1])
    with pytest.raises(DataError, match="does not hold all shards of train"):
        shards(tmp_path)
    write_numbers(tmp_path / "test-00000-of-00001.parquet", [1])
    with pytest.raises(DataError, match="several splits"):
        shards(tmp_path)


@pytest.mark.parametrize("cut", [0, 10, 60])
def test_damaged_parquet_is_named(tmp_path: Path, cut: int) -> None:
    file = write_numbers(tmp_path / "rows.parquet", [1, 2])
    file.write_bytes(file.read_bytes()[:cut])
    for policy in ("error", "skip"):
        with pytest.raises(DataError, match="rows.parquet cannot be read as parquet"):
            load_rows(file, on_bad_row=policy)


def test_parquet_text_that_is_no_text_spoils_one_row(tmp_path: Path) -> None:
    problems = pyarrow.array([b"\xff", b"Which?"]).cast(pyarrow.binary())
    problems = pyarrow.StringArray.from_buffers(2, problems.buffers()[1], problems.buffers()[2])
    table = pyarrow.table({"problem": problems, "options": [["x", "y"]] * 2, "solution": ["A", "B"]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    loaded = load_rows(tmp_path / "rows.parquet", on_bad_row="skip")
    assert ([row.solution for row in loaded.rows], [bad.line for bad in loaded.skipped]) == (["B"], [1])
    assert "not UTF-8" in loaded.skipped[0].reason


def test_twin_columns_are_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="the same name"):
        read(tmp_path / "rows.parquet")


def test_data_format_overrules_the_name(tmp_path: Path) -> None:
    file = write_numbers(tmp_path / "rows.bin", [5])
    assert read(file, "parquet") == [(1, {"number": 5})]
    text = tmp_path / "rows.txt"
    text.write_text("a\tb\n1\t2\n")
    assert read(text, "tsv") == [(2, {"a": "1", "b": "2"})]
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read(text, "parquet")
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path, "tsv")
    with pytest.raises(DataError, match="save_to_disk"):
        read(text, "saved_dataset")


@pytest.mark.parametrize(
    "name", ["hub:", "hub:squad", "hub:a/b", "hub:../x:train", "hub:/a/b:train", "hub:a/b/c:train"]
)
def test_hub_names_are_owner_name_and_split(name: str) -> None:
    with pytest.raises(DataError, match="not a name on the hub"):
        read(name)


def test_hub_rows_say_what_to_do_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise ConnectionError("Couldn't reach 'a/b' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"the split train of a/b cannot be loaded from the hub") as caught:
        load_rows("hub:a/b:train")
    assert "save_to_disk(FOLDER)" in str(caught.value)


def test_hub_rows_keep_pictures_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"images": [[{"bytes": picture_bytes(), "path": None}]], "problem": ["How many?"], "solution": ["3"]}
    rows["problem_type"] = ["counting"]
    table = datasets.Dataset.from_dict(rows).cast_column("images", datasets.List(datasets.Image()))
    asked: list[tuple[object, object]] = []

    def give(name: str, **arguments: object) -> datasets.Dataset:
        asked.append((name, arguments))
        return table

    monkeypatch.setattr(datasets, "load_dataset", give)
    (row,) = load_rows("hub:a/b:train").rows
    assert row.visuals[0].paths[0].read_bytes() == picture_bytes()
    assert asked == [("a/b", {"split": "train"})]
