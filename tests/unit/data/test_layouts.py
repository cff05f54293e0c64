"""Each layout in the kind of file it comes in, written as its makers write it."""

import base64
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from embedded_pictures import picture_bytes
from pyarrow import parquet

from megatron_moe_grpo.data.embedded_image import store_image
from megatron_moe_grpo.data.row_place import RowPlace
from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.sources import load_rows
from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.errors import DataError

PLACE = RowPlace("test", 1)
PNG, OTHER = picture_bytes(100), picture_bytes(200)
URI = f"data:image/jpg;base64,{base64.b64encode(PNG).decode()}"
STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def stored(content: bytes) -> VisualFiles:
    return VisualFiles((store_image(content, PLACE),))


def write_parquet(file: Path, rows: list[dict[str, Any]], schema: pyarrow.Schema | None = None) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), file)
    return file


def write_lines(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "1.png").write_bytes(PNG)
    return tmp_path


def r1v_table() -> datasets.Dataset:
    """As GEOQA_R1V_Train_8K and clevr_cogen_a_train: `datasets.Image`, no tag, no type; distilled sets say more."""
    rows = {
        "image": [{"bytes": PNG, "path": "0.png"}, {"bytes": OTHER, "path": None}],
        "thinking": ["<think>\n180-35\n</think>", None],
        "problem": ["As shown, what is the angle?", "How many items are there?"],
        "solution": ["<answer> 145° </answer>", "<answer> 3 </answer>"],
    }
    text = datasets.Value("string")
    features = {"image": datasets.Image(), "thinking": text, "problem": text, "solution": text}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def r1v_rows() -> tuple[Row, ...]:
    return (
        Row("line-1", "As shown, what is the angle?", (), "145°", "math", (stored(PNG),), "180-35"),
        Row("line-2", "How many items are there?", (), "3", "math", (stored(OTHER),)),
    )


def test_r1v_parquet_folder_of_shards_and_saved_dataset_are_the_same_rows(folder: Path) -> None:
    table = r1v_table()
    table.to_parquet(str(folder / "rows.parquet"))
    (folder / "shards").mkdir()
    for index in range(2):
        table.select([index]).to_parquet(str(folder / "shards" / f"train-{index:05d}-of-00002.parquet"))
    table.save_to_disk(str(folder / "saved"))
    for source in ("rows.parquet", "shards", "saved"):
        assert load_rows(folder / source).rows == r1v_rows()


def test_r1v_test_prompts_have_whole_numbers(folder: Path) -> None:
    row = {"image_path": "./1.png", "question": "How many?", "ground_truth": 3}
    rows = load_rows(write_lines(folder / "superclevr.jsonl", row, row | {"ground_truth": "140°"})).rows
    assert [(row.problem, row.solution, row.problem_type) for row in rows] == [
        ("How many?", "3", "math"),
        ("How many?", "140°", "math"),
    ]
    with pytest.raises(DataError, match=r"bad.jsonl:1, field 'ground_truth': wrong type"):
        load_rows(write_lines(folder / "bad.jsonl", row | {"ground_truth": [3]}))


def test_a_row_with_a_path_and_no_type_is_still_no_open_question(folder: Path) -> None:
    row = {"image": "1.png", "problem": "How many?", "solution": "3"}
    with pytest.raises(DataError, match="the row has no options"):
        load_rows(write_lines(folder / "rows.jsonl", row))


def verl_row(**change: Any) -> dict[str, Any]:
    return {
        "data_source": "hiyouga/geometry3k",
        "prompt": [{"role": "user", "content": "<image>Find x."}],
        "images": [{"bytes": PNG, "path": None}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2\\sqrt{3}"},
        "extra_info": {"split": "train", "index": 0, "answer": "2\\sqrt{3}", "question": "<image>Find x."},
    } | change


def test_verl_parquet(folder: Path) -> None:
    rows = load_rows(write_parquet(folder / "train.parquet", [verl_row(), verl_row()])).rows
    expected = Row("line-1", "<image>Find x.", (), "2\\sqrt{3}", "hiyouga/geometry3k", (stored(PNG),))
    assert rows[0] == expected
    assert rows[1].id == "line-2"


def test_verl_json_lines_with_options_and_a_number(folder: Path) -> None:
    choice = verl_row(
        prompt=[{"role": "user", "content": "Which?\nA. 3\nB. 4"}],
        images=None,
        reward_model={"style": "rule", "ground_truth": "B"},
    )
    number = verl_row(images=["1.png"], reward_model={"style": "rule", "ground_truth": 12}, problem_type="counting")
    rows = load_rows(write_lines(folder / "rows.jsonl", choice, number)).rows
    assert (rows[0].options, rows[0].solution) == (("A. 3", "B. 4"), "B")
    assert (rows[1].solution, rows[1].problem_type) == ("12", "counting")


SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
USER = {"role": "user", "content": "<image>How many?"}
ASSISTANT = {"role": "assistant", "content": "<think>1+2</think><answer>3</answer>"}

BAD_VERL = [
    ("prompt", {"prompt": "How many?"}, "wrong type"),
    ("prompt", {"prompt": []}, "not one question"),
    ("prompt", {"prompt": [SYSTEM, USER]}, "a system message"),
    ("prompt", {"prompt": [USER, ASSISTANT]}, "an answer inside the prompt"),
    ("prompt", {"prompt": [USER, ASSISTANT, USER]}, "not one question"),
    ("prompt", {"prompt": [{"role": "user", "content": [{"type": "text"}]}]}, "wrong type of content"),
    ("reward_model", {"reward_model": {"style": "rule"}}, "no ground truth"),
    ("reward_model", {"reward_model": "rule"}, "no ground truth"),
    ("reward_model", {"reward_model": {"ground_truth": ["a"]}}, "wrong type"),
    ("problem", {"images": None}, "1 tags, 0 images"),
    ("problem_type", {"data_source": 3}, "wrong type"),
    ("image", {"images": ["nowhere.png"]}, "does not exist"),
]


@pytest.mark.parametrize(("field", "change", "message"), BAD_VERL)
def test_verl_rows_are_refused_by_field(folder: Path, field: str, change: dict[str, Any], message: str) -> None:
    row = verl_row(images=["1.png"]) | change
    with pytest.raises(DataError) as caught:
        load_rows(write_lines(folder / "rows.jsonl", row))
    assert "rows.jsonl:1" in str(caught.value) and f"field '{field}'" in str(caught.value)
    assert message in str(caught.value)


def test_swift_lines_with_paths_and_inline_pictures(folder: Path) -> None:
    grpo = {"messages": [USER], "images": [URI], "solution": "<answer>3</answer>", "problem_type": "counting"}
    taught = {"id": "b", "messages": [USER, ASSISTANT], "images": ["1.png"], "problem_type": "counting"}
    choice = {"messages": [{"role": "user", "content": "Which?\nA. x\nB. y"}], "image": "1.png", "solution": "A"}
    rows = load_rows(write_lines(folder / "rows.jsonl", grpo, taught, choice)).rows
    assert rows[0] == Row("line-1", "<image>How many?", (), "3", "counting", (stored(PNG),))
    path = VisualFiles((folder / "1.png",))
    assert rows[1] == Row("b", "<image>How many?", (), "3", "counting", (path,), "1+2")
    assert (rows[2].options, rows[2].solution, rows[2].problem_type) == (("A. x", "B. y"), "A", "multiple choice")


BAD_SWIFT = [
    ("messages", {"messages": [SYSTEM, USER]}, "a system message"),
    ("messages", {"messages": [USER, ASSISTANT, USER, ASSISTANT]}, "not one question"),
    ("messages", {"messages": [ASSISTANT]}, "not one question"),
    ("messages", {"messages": "hello"}, "wrong type"),
    ("solution", {"messages": [USER, ASSISTANT]}, "given beside messages"),
    ("problem", {"problem": "How many?"}, "given beside messages"),
    ("solution", {"solution": None}, "no solution"),
    ("options", {"problem_type": None}, "no options"),
    ("image", {"images": ["https://example.org/1.png"]}, "URLs"),
    ("image", {"images": ["data:image/gif;base64,AAAA"]}, "inline data of a type that is not read"),
]


@pytest.mark.parametrize(("field", "change", "message"), BAD_SWIFT)
def test_swift_rows_are_refused_by_field(folder: Path, field: str, change: dict[str, Any], message: str) -> None:
    row = {"messages": [USER], "images": ["1.png"], "solution": "3", "problem_type": "counting"} | change
    with pytest.raises(DataError) as caught:
        load_rows(write_lines(folder / "rows.jsonl", row))
    assert "rows.jsonl:1" in str(caught.value) and f"field '{field}'" in str(caught.value)
    assert message in str(caught.value)
