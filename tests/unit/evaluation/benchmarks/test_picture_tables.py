"""MMStar, MMT-Bench and AI2D: tables of pictures with four to nine options."""

from pathlib import Path

import datasets
import pytest
from benchmark_files import base64_png, png, scores_of, values_of, write_parquet, write_tsv

from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.evaluation.benchmarks.ai2d import AI2D
from megatron_moe_grpo.evaluation.benchmarks.mmstar import MMStar
from megatron_moe_grpo.evaluation.benchmarks.mmt_bench import MMTBench

INLINE = "Which option describes the object?\nOptions: A: Head, left, B: Tail, C: Side view, D: Nose"


def test_mmstar_reads_options_inside_the_question(tmp_path: Path) -> None:
    row = {
        "index": 0, "question": INLINE, "image": {"bytes": png(), "path": None}, "answer": "A",
        "category": "instance reasoning", "l2_category": "single-instance reasoning",
        "meta_info": {"source": "MMBench", "split": "val", "image_path": "images/0.jpg"},
    }  # fmt: skip
    (question,) = MMStar().load(write_parquet(tmp_path / "val-00000-of-00001.parquet", [row]), None)
    assert question.options == ("A. Head, left", "B. Tail", "C. Side view", "D. Nose")
    assert question.prompt == f"{INLINE}\nAnswer with the option's letter from the given choices directly."
    assert MMStar().is_correct(question, "head, left", "official")
    assert not MMStar().is_correct(question, "head, left", "strict")


def test_mmstar_keeps_full_stops_of_options(tmp_path: Path) -> None:
    text = "Which?\nOptions: A: It is on the book., B: It is under it., C: It is gone., D: It is beside it."
    row = {"index": 0, "question": text, "image": {"bytes": png(), "path": None}, "answer": "D"}
    (question,) = MMStar().load(write_parquet(tmp_path / "x.parquet", [row]), None)
    assert question.options[0] == "A. It is on the book." and question.options[3] == "D. It is beside it."


def test_mmstar_reads_letters_where_options_are_written_otherwise(tmp_path: Path) -> None:
    row = {"index": 0, "question": "Which of A, B, C, D?", "image": {"bytes": png(), "path": None}, "answer": "D"}
    (question,) = MMStar().load(write_parquet(tmp_path / "x.parquet", [row]), None)
    assert question.options == ("A. ", "B. ", "C. ", "D. ")
    assert MMStar().is_correct(question, "D", "strict")
    assert not MMStar().is_correct(question, "", "official")


def test_mmstar_reads_columns(tmp_path: Path) -> None:
    row = {
        "index": 3, "question": "Which?", "A": "w", "B": "x", "C": "y", "D": "z", "answer": "B", "category": "math",
        "l2_category": "geometry", "image": base64_png(),
    }  # fmt: skip
    (question,) = MMStar().load(write_tsv(tmp_path / "MMStar.tsv", [row]), None)
    assert question.prompt.startswith("Question: Which?\nOptions:\nA. w\nB. x")
    scores = scores_of(MMStar(), [question], ["B"], "strict")
    assert values_of(scores) == {"overall": 1.0, "category.math": 1.0, "l2_category.geometry": 1.0}


def mmt_rows(images: list[str]) -> list[dict[str, object]]:
    subtasks = [("ocr", "font"), ("ocr", "font"), ("ocr", "font"), ("ocr", "handwriting"), ("counting", "crowd")]
    return [
        {
            "index": number, "question": "Which?", "answer": "A", "category": subtask, "l2-category": meta,
            "split": "VAL", "image": images[number], **dict(zip("ABCDEFGHI", "abcdefghi", strict=True)),
        }
        for number, (meta, subtask) in enumerate(subtasks)
    ]  # fmt: skip


def test_mmt_bench_takes_the_mean_of_subtasks(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "MMT-Bench_VAL.tsv", mmt_rows([base64_png(i) for i in range(5)]))
    questions = MMTBench().load(path, None)
    assert len(questions[0].options) == 9
    # font 2 of 3, handwriting 0 of 1, crowd 1 of 1: ocr is the mean of 2/3 and 0, not 2/4.
    scores = values_of(scores_of(MMTBench(), questions, ["A", "A", "I", "B", "A"], "strict"))
    assert scores == pytest.approx(
        {
            "overall": 3 / 5, "l2_category.counting": 1.0, "l2_category.ocr": 1 / 3,
            "category.crowd": 1.0, "category.font": 2 / 3, "category.handwriting": 0.0,
        }
    )  # fmt: skip


def test_mmt_bench_reads_several_pictures_of_a_cell(tmp_path: Path) -> None:
    cells = [str([base64_png(number), base64_png(number + 50)]) for number in range(5)]
    questions = MMTBench().load(write_tsv(tmp_path / "MMT-Bench_VAL_MI.tsv", mmt_rows(cells)), None)
    assert [len(question.visuals) for question in questions] == [2] * 5


def test_a_cell_that_is_code_is_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    code = f"[open({str(canary)!r}, 'w').write('ran')] + [{'x' * 80!r}]"
    path = write_tsv(tmp_path / "x.tsv", mmt_rows([code] * 5))
    with pytest.raises(DataError, match="not a list of pictures"):
        MMTBench().load(path, None)
    assert not canary.exists()


def test_ai2d_reads_numbers_as_answers(tmp_path: Path) -> None:
    rows = [
        {
            "question": "Which?",
            "options": ["w", "x", "y", "z"],
            "answer": answer,
            "image": {"bytes": png(), "path": None},
        }
        for answer in ("0", "3")
    ]
    first, last = AI2D().load(write_parquet(tmp_path / "x.parquet", rows), None)
    assert (first.id, first.reference, last.id, last.reference) == ("1", "A", "2", "D")
    assert last.prompt == (
        "Which?\nA. w\nB. x\nC. y\nD. z\nAnswer with the option's letter from the given choices directly."
    )


def test_ai2d_reads_letters_as_answers(tmp_path: Path) -> None:
    row = {
        "index": 5,
        "question": "Which?",
        "A": "w",
        "B": "x",
        "C": "y",
        "D": "z",
        "answer": "D",
        "image": base64_png(),
    }
    (question,) = AI2D().load(write_tsv(tmp_path / "AI2D_TEST.tsv", [row]), None)
    assert (question.id, question.reference, question.facets) == ("5", "D", {})


@pytest.mark.parametrize("answer", ["4", "-1", "B", ""])
def test_ai2d_refuses_a_number_of_no_option(answer: str, tmp_path: Path) -> None:
    row = {
        "question": "Which?",
        "options": ["w", "x", "y", "z"],
        "answer": answer,
        "image": {"bytes": png(), "path": None},
    }
    with pytest.raises(DataError, match="answer"):
        AI2D().load(write_parquet(tmp_path / "x.parquet", [row]), None)


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    row = {"question": "Which?", "options": ["w", "x"], "answer": "1", "image": {"bytes": png(), "path": None}}
    table = datasets.Dataset.from_list([row]).cast_column("image", datasets.Image())
    table.save_to_disk(tmp_path / "saved")
    (question,) = AI2D().load(tmp_path / "saved", None)
    assert question.reference == "B"


def test_pictures_may_be_paths(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png())
    row = {"index": 5, "question": "Which?", "A": "w", "B": "x", "answer": "B", "image_path": "1.png"}
    (question,) = AI2D().load(write_tsv(tmp_path / "x.tsv", [row]), None)
    assert question.visuals[0].paths == ((tmp_path / "1.png").resolve(),)
    row["image_path"] = "../1.png"
    with pytest.raises(DataError, match="leaves the image root"):
        AI2D().load(write_tsv(tmp_path / "x.tsv", [row]), None)
