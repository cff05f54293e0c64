"""MMBench: rolled copies, pictures by reference, the circular score."""

from pathlib import Path
from typing import Any

import pytest
from benchmark_files import base64_png, png, scores_of, values_of, write_parquet, write_tsv

from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.evaluation.benchmarks.mmbench import MMBench

ROWS = [
    # One question with two options: two copies.  One with three: three.
    {"index": 7, "hint": None, "question": "Left?", "A": "cat", "B": "dog", "C": None, "answer": "A", "c": "at"},
    {"index": 1000007, "hint": None, "question": "Left?", "A": "dog", "B": "cat", "C": None, "answer": "B", "c": "at"},
    {"index": 9, "hint": "Count.", "question": "Many?", "A": "1", "B": "2", "C": "3", "answer": "C", "c": "num"},
    {"index": 1000009, "hint": "Count.", "question": "Many?", "A": "3", "B": "1", "C": "2", "answer": "A", "c": "num"},
    {"index": 2000009, "hint": "Count.", "question": "Many?", "A": "2", "B": "3", "C": "1", "answer": "B", "c": "num"},
]  # fmt: skip


def rows(image_of: Any) -> list[dict[str, Any]]:
    return [
        {
            **{name: value for name, value in row.items() if name != "c"},
            "image": image_of(row["index"]), "category": row["c"], "l2-category": "perception", "split": "dev",
        }
        for row in ROWS
    ]  # fmt: skip


def tsv(tmp_path: Path) -> Path:
    return write_tsv(tmp_path / "MMBench_DEV_EN.tsv", rows(lambda i: base64_png(i) if i < 1000 else str(i % 1000000)))


def test_load_reads_the_table(tmp_path: Path) -> None:
    questions = MMBench().load(tsv(tmp_path), None)
    assert [(q.id, q.group, q.reference) for q in questions] == [
        ("7", "7", "A"), ("1000007", "7", "B"), ("9", "9", "C"), ("1000009", "9", "A"), ("2000009", "9", "B"),
    ]  # fmt: skip
    assert questions[2].prompt == (
        "Hint: Count.\nQuestion: Many?\nOptions:\nA. 1\nB. 2\nC. 3\n"
        "Please select the correct answer from the options above. \n"
    )
    assert questions[0].prompt.startswith("Question: Left?\nOptions:\nA. cat\nB. dog\nPlease")
    assert questions[0].visuals == questions[1].visuals != questions[2].visuals
    assert questions[0].facets == {"category": "at", "l2_category": "perception"}


def test_load_reads_the_parquet_copy(tmp_path: Path) -> None:
    table = rows(lambda index: {"bytes": png(index % 1000000), "path": None})
    for row in table:
        row |= {"hint": row["hint"] or "nan", "C": row["C"] or "nan", "L2-category": row.pop("l2-category")}
    folder = write_parquet(tmp_path / "en" / "dev-00000-of-00001.parquet", table).parent
    assert MMBench().load(folder, None) == MMBench().load(tsv(tmp_path), None)


def test_score_takes_a_question_for_right_only_if_all_copies_are(tmp_path: Path) -> None:
    benchmark = MMBench()
    questions = benchmark.load(tsv(tmp_path), None)
    # Question 7 right in both orders; question 9 in its first order and one more.
    scores = scores_of(benchmark, questions, ["A", "The answer is B.", "C", "A", "A"], "official")
    assert values_of(scores) == {
        "overall": 0.5, "category.num": 0.0, "category.at": 1.0, "l2_category.perception": 0.5,
        "vanilla": 1.0, "all_rows": 0.8,
    }  # fmt: skip
    assert (scores["overall"].num_examples, scores["all_rows"].num_examples) == (2, 5)


def test_official_and_strict_differ_where_the_letter_stands_in_a_sentence(tmp_path: Path) -> None:
    questions = MMBench().load(tsv(tmp_path), None)
    assert MMBench().is_correct(questions[0], "It shows the letter A", "official")
    assert not MMBench().is_correct(questions[0], "It shows the letter A", "strict")
    assert MMBench().is_correct(questions[0], "A. cat", "strict")


def test_load_refuses_a_copy_without_its_question(tmp_path: Path) -> None:
    table = rows(base64_png)[1:]
    with pytest.raises(DataError, match="without its question"):
        MMBench().load(write_tsv(tmp_path / "x.tsv", table), None)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"answer": None}, "no answer"),
        ({"answer": "D"}, "not the letter of an option"),
        ({"B": None}, "fewer|not 2"),
        ({"A": None}, "empty option"),
        ({"image": "12"}, "neither a picture"),
        ({"image": "!" * 80}, "not base64"),
        ({"index": "seven"}, "not a whole number"),
        ({"question": None}, "no text"),
    ],
)
def test_load_names_what_is_wrong(change: dict[str, Any], what: str, tmp_path: Path) -> None:
    table = rows(base64_png)[:2]
    table[0] |= change
    with pytest.raises(DataError, match=what):
        MMBench().load(write_tsv(tmp_path / "x.tsv", table), None)


def test_load_refuses_an_index_that_stands_twice(tmp_path: Path) -> None:
    table = rows(base64_png)[:1] * 2
    with pytest.raises(DataError, match="stands twice"):
        MMBench().load(write_tsv(tmp_path / "x.tsv", table), None)
