from pathlib import Path
from typing import Any

import pytest

from megatron_moe_grpo.data.schema import Row, parse_row
from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.errors import DataError

GOOD = {
    "id": "cat",
    "image": "1.png",
    "problem": "How many?",
    "options": ["A. 3", "B. 4"],
    "solution": "<answer>B</answer>",
    "problem_type": "count",
}
HUMAN = {"from": "human", "value": "<image>\nWhich one?\nA. cat\nB. dog"}
GPT = {"from": "gpt", "value": "B"}


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    for number in range(1, 10):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    return tmp_path


def test_parse_row_reads_one_thinker_style(image_root: Path) -> None:
    row = parse_row(GOOD | {"digits": [1, 2]}, 7, "rows.jsonl", image_root)
    assert row == Row("cat", "How many?", ("A. 3", "B. 4"), "B", "count", (VisualFiles((image_root / "1.png",)),))


def test_parse_row_reads_llava_style_with_option_lines(image_root: Path) -> None:
    row = parse_row({"id": 12, "image": "1.png", "conversations": [HUMAN, GPT]}, 7, "rows.jsonl", image_root)
    expected = Row(
        "12",
        "<image>\nWhich one?",
        ("A. cat", "B. dog"),
        "B",
        "multiple choice",
        (VisualFiles((image_root / "1.png",)),),
    )
    assert row == expected


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"id": None}, "id", "line-7"),
        ({"problem_type": None}, "problem_type", "multiple choice"),
        ({"image": None}, "visuals", 0),
        ({"image": None, "images": []}, "visuals", 0),
        ({"video": None, "videos": []}, "visuals", 1),
    ],
)
def test_parse_row_takes_null_as_absent(image_root: Path, change: dict[str, Any], field: str, expected: object) -> None:
    row = parse_row(GOOD | change, 7, "rows.jsonl", image_root)
    found = {"id": row.id, "problem_type": row.problem_type, "visuals": len(row.visuals)}
    assert found[field] == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"options": None, "solution": "4"}, ((), "4", None)),
        ({"options": [], "solution": "<answer> 3*pi </answer>"}, ((), "3*pi", None)),
        ({"options": [], "solution": "4", "rationale": " 2+2 "}, ((), "4", "2+2")),
        ({"options": [], "solution": "4", "process": "<think>2+2</think>"}, ((), "4", "2+2")),
        ({"options": [], "solution": "4", "thinking": "<think>\n2+2\n</think>"}, ((), "4", "2+2")),
        ({"options": [], "solution": "4", "rationale": " "}, ((), "4", None)),
        ({"options": [], "solution": "<think>2+2</think>\n<answer>4</answer>"}, ((), "4", "2+2")),
        ({"solution": "<think>so</think><answer>B</answer>"}, (("A. 3", "B. 4"), "B", "so")),
    ],
)
def test_parse_row_reads_open_answers_and_rationales(
    image_root: Path, change: dict[str, Any], expected: tuple[tuple[str, ...], str, str | None]
) -> None:
    row = parse_row(GOOD | change, 7, "rows.jsonl", image_root)
    assert (row.options, row.solution, row.rationale) == expected


def test_parse_row_takes_option_lines_of_an_open_question_unless_told_that_there_are_none(image_root: Path) -> None:
    lines = GOOD | {"problem": "Which?\nA. cat\nB. dog", "options": None}
    assert parse_row(lines, 7, "rows.jsonl", image_root).options == ("A. cat", "B. dog")
    assert parse_row(lines | {"options": []}, 7, "rows.jsonl", image_root).problem == "Which?\nA. cat\nB. dog"


BAD_ROWS: list[tuple[str, dict[str, Any], str]] = [
    ("solution", {"solution": None}, "no solution"),
    ("solution", {"solution": None, "answer": "B"}, '"answer" is not read'),
    ("solution", {"solution": ""}, "empty"),
    ("solution", {"solution": "C"}, "no option C"),
    ("solution", {"solution": "5"}, "none of the options"),
    ("solution", {"solution": 1}, "wrong type"),
    ("solution", {"solution": ["B"]}, "wrong type"),
    ("options", {"options": None, "problem_type": None}, "no options"),
    ("options", {"options": None, "problem_type": "Multiple_choice"}, "no options"),
    ("options", {"options": [], "problem_type": None}, "not 2 to 26"),
    ("options", {"options": ["3"]}, "not 2 to 26"),
    ("solution", {"options": [], "solution": "<answer> </answer>"}, "empty"),
    ("solution", {"options": [], "solution": "so <answer>4</answer>"}, "tags that do not enclose"),
    ("solution", {"options": [], "solution": "<answer>4</answer><answer>5</answer>"}, "tags that do not enclose"),
    ("solution", {"options": [], "solution": 4}, "wrong type"),
    ("rationale", {"rationale": 3}, "wrong type"),
    ("rationale", {"rationale": "<think>a</think> b"}, "tags inside the reasoning"),
    ("process", {"rationale": "a", "process": "b"}, "given twice"),
    ("rationale", {"rationale": "a", "solution": "<think>b</think><answer>B</answer>"}, "given twice"),
    ("options", {"options": ["3", "3"]}, "the same"),
    ("options", {"options": "['3', '4']"}, "wrong type"),
    ("options", {"options": [3, 4]}, "wrong type"),
    ("options", {"options": {"A": "3"}}, "wrong type"),
    ("problem", {"problem": None}, "no problem"),
    ("problem", {"problem": " \n"}, "empty"),
    ("problem", {"problem": "<image>"}, "empty"),
    ("problem", {"problem": "<image> <video>", "video": "1.png"}, "empty"),
    ("problem", {"problem": 3}, "wrong type"),
    ("problem", {"problem": "half \ud800"}, "surrogate"),
    ("problem", {"problem": "<image> <image> which?"}, "2 tags, 1 images"),
    ("problem_type", {"problem_type": 3}, "wrong type"),
    ("image", {"image": "nowhere.png"}, "does not exist"),
    ("image", {"image": "../x.png"}, "leaves the image root"),
    ("problem", {"conversations": [HUMAN, GPT]}, "beside conversations"),
    ("conversations", {"problem": None, "solution": None, "conversations": [HUMAN]}, "not one question"),
    ("conversations", {"problem": None, "solution": None, "conversations": [GPT, HUMAN]}, "not one question"),
    ("conversations", {"problem": None, "solution": None, "conversations": [HUMAN, GPT] * 2}, "not one question"),
    ("conversations", {"problem": None, "solution": None, "conversations": "hello"}, "wrong type"),
    ("conversations", {"problem": None, "solution": None, "conversations": [1, 2]}, "wrong type"),
    ("value", {"problem": None, "solution": None, "conversations": [HUMAN, {"from": "gpt"}]}, "no value"),
]


@pytest.mark.parametrize(("field", "change", "message"), BAD_ROWS)
def test_parse_row_names_the_row_and_field_of_bad_rows(
    image_root: Path, field: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        parse_row(GOOD | change, 7, "rows.jsonl", image_root)
    assert f"rows.jsonl:7 (id 'cat'), field '{field}'" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("bad_id", [True, 1.5, ["x"], ""])
def test_parse_row_refuses_ids_of_a_wrong_type(image_root: Path, bad_id: object) -> None:
    with pytest.raises(DataError, match="rows.jsonl:7, field 'id': wrong type"):
        parse_row(GOOD | {"id": bad_id}, 7, "rows.jsonl", image_root)


def test_parse_row_never_runs_text_from_a_row(image_root: Path) -> None:
    canary = image_root / "canary"
    code = f"[__import__('pathlib').Path({str(canary)!r}).touch()]"
    with pytest.raises(DataError):
        parse_row(GOOD | {"options": code}, 7, "rows.jsonl", image_root)
    assert not canary.exists()
