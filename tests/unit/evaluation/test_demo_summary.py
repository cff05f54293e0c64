"""The demo's last table, from made-up files of every stage."""

import json
from pathlib import Path

import pytest

from megatron_moe_grpo.evaluation.demo_summary import COLUMNS, agreement, summary_rows


def write_lines(path: Path, lines: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def evaluation(step: int, accuracy: float, blank: float | None = None) -> dict:
    line = {"step": step, "eval_accuracy": accuracy, "eval_num_examples": 100}
    return line if blank is None else line | {"eval_blank_accuracy": blank}


def answer(index: int, response: str, is_correct: bool) -> dict:
    return {"id": f"row-{index}", "problem_type": "where", "response": response, "is_correct": is_correct}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    stages = {"dense_sft": (0.25, 0.6, 0.75), "moe_grpo": (0.4, 0.5, 0.65),
              "supervised": (0.4, 0.6, 0.7)}  # fmt: skip
    for name, (first, middle, last) in stages.items():
        write_lines(
            tmp_path / name / "metrics.jsonl",
            [evaluation(0, first, 0.24), {"step": 1, "loss": 1.0}, evaluation(2, middle), evaluation(3, last, 0.26)],
        )
    write_lines(tmp_path / "answers_dense.jsonl", [answer(index, "A", index < 30) for index in range(100)])
    write_lines(tmp_path / "answers_ours.jsonl", [answer(0, "A", True), answer(1, "B", False), answer(2, "C", True)])
    write_lines(
        tmp_path / "answers_transformers.jsonl", [answer(2, "C", True), answer(0, "A", True), answer(1, "D", False)]
    )
    return tmp_path


def test_summary_rows_take_the_first_and_last_evaluation_of_each_run(out: Path) -> None:
    rows = summary_rows(out)
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert [(row[1], row[2], row[5]) for row in rows] == [
        ("clear", 0.75, 0.26),
        ("washed out", 0.3, None),
        ("washed out", 0.4, 0.24),
        ("washed out", 0.65, 0.26),
        ("washed out", 0.7, 0.26),
    ]


def test_summary_rows_carry_wilson_intervals(out: Path) -> None:
    # 75 of 100: centre (0.75 + 0.0192) / 1.0384, half-width 0.0835 (Wilson 1927).
    assert summary_rows(out)[0][3:5] == (pytest.approx(0.6570, abs=1e-4), pytest.approx(0.8245, abs=1e-4))
    # 30 of 100, from the answers themselves.
    assert summary_rows(out)[1][3:5] == (pytest.approx(0.2189, abs=1e-4), pytest.approx(0.3958, abs=1e-4))


def test_agreement_compares_by_row_not_by_place(out: Path) -> None:
    assert agreement(out) == (2, 3)
