"""MME: its three kinds of files, its reading of yes and no, its points."""

from pathlib import Path
from typing import Any

import pytest
from benchmark_files import base64_png, png, scores_of, values_of, write_parquet, write_tsv

from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.evaluation.benchmarks.mme import COGNITION, MME, PERCEPTION, said_yes_or_no

ASKED = " Please answer yes or no."
# (subtask, picture, question, answer)
FACTS = [
    ("color", "1.jpg", f"Is the car red?{ASKED}", "Yes"),
    ("color", "1.jpg", f"Is the car blue?{ASKED}", "No"),
    ("color", "2.jpg", f"Is the hat red?{ASKED}", "Yes"),
    ("color", "2.jpg", f"Is the hat blue?{ASKED}", "No"),
    ("code_reasoning", "0020.png", f"Does it print 1?{ASKED}", "Yes"),
    ("code_reasoning", "0020.png", f"Does it print 2?{ASKED}", "No"),
]


OTHERS = [name for name in PERCEPTION + COGNITION if name not in ("color", "code_reasoning")]
FACTS += [(name, "9.png", f"{word}?{ASKED}", word) for name in OTHERS for word in ("Yes", "No")]


def tsv(tmp_path: Path, facts: list[tuple[str, str, str, str]] = FACTS) -> Path:
    """The second question of a picture refers to the row of the first."""
    first: dict[tuple[str, str], int] = {}
    rows = []
    for index, (category, picture, question, answer) in enumerate(facts):
        seen = first.setdefault((category, picture), index)
        image = base64_png(index) if seen == index else str(seen)
        rows.append(
            {
                "index": index, "image": image, "image_path": picture, "question": question, "category": category,
                "answer": answer,
            }
        )  # fmt: skip
    return write_tsv(tmp_path / "MME.tsv", rows)


def release(tmp_path: Path) -> Path:
    """Color has its texts beside the pictures, code_reasoning in folders of their own."""
    folder = tmp_path / "MME_Benchmark_release_version"
    for category, picture, question, answer in FACTS:
        split = category == "code_reasoning"
        pictures = folder / category / "images" if split else folder / category
        texts = folder / category / "questions_answers_YN" if split else folder / category
        for place in (pictures, texts):
            place.mkdir(parents=True, exist_ok=True)
        (pictures / picture).write_bytes(png(len(picture)))
        with (texts / f"{Path(picture).stem}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{question}\t{answer}\n")
    (folder / "eval_tool").mkdir()
    return folder


def parquet(tmp_path: Path) -> Path:
    rows = [
        {
            "question_id": f"{category}/{picture}", "image": {"bytes": png(index), "path": picture},
            "question": question, "answer": answer, "category": category,
        }
        for index, (category, picture, question, answer) in enumerate(FACTS)
    ]  # fmt: skip
    return write_parquet(tmp_path / "mme" / "test-00000-of-00001.parquet", rows).parent


@pytest.mark.parametrize("make", [tsv, release, parquet])
def test_load_reads_every_kind_of_file_alike(make: Any, tmp_path: Path) -> None:
    questions = MME().load(make(tmp_path), None)
    assert sorted((q.facets["category"], q.prompt, q.reference) for q in questions) == sorted(
        (category, question, answer.lower()) for category, _, question, answer in FACTS
    )
    assert len({question.group for question in questions}) == 3 + len(OTHERS)
    assert all(len(question.visuals) == 1 and not question.visuals[0].is_video for question in questions)


def test_score_adds_accuracy_and_accuracy_plus(tmp_path: Path) -> None:
    benchmark = MME()
    questions = benchmark.load(tsv(tmp_path), None)
    # Color: 3 of 4 right (75), one of two pictures wholly right (50).  Code: 1 of 2 (50), no picture (0).  The other
    # nine of perception and three of cognition say yes to both: 50 each.
    said = ["Yes.", "no", "yes", "Yes", "No", "No, it does not.", *["Yes"] * 2 * len(OTHERS)]
    scores = scores_of(benchmark, questions, said, "official")
    values = values_of(scores)
    assert (values["overall"], values["perception"], values["cognition"]) == (775.0, 125.0 + 450, 50.0 + 150)
    assert {name: value for name, value in values.items() if "co" in name and "count" not in name} == {
        "cognition": 200.0, "points.color": 125.0, "accuracy.color": 0.75, "accuracy_plus.color": 0.5,
        "points.code_reasoning": 50.0, "accuracy.code_reasoning": 0.5, "accuracy_plus.code_reasoning": 0.0,
        "points.commonsense_reasoning": 50.0, "accuracy.commonsense_reasoning": 0.5,
        "accuracy_plus.commonsense_reasoning": 0.0,
    }  # fmt: skip
    assert (scores["overall"].num_correct, scores["accuracy_plus.color"].num_correct) == (None, 1)


@pytest.mark.parametrize(
    ("response", "official", "strict"),
    [
        ("Yes", "yes", "yes"),
        ("no.", "no", "no"),
        ("Yes, it is.", "yes", None),
        ("y", "yes", None),
        ("N.", "no", None),
        ("None of them", "no", None),  # the authors' tool takes the first four letters
        ("The answer is yes", None, None),
        ("Eyes are red", "yes", None),
        ("My yes", None, None),
        ("", None, None),
        ("<think>Yes?</think><answer>No</answer>", "no", "no"),
        ("<think>Yes", None, None),
    ],
)
def test_said_yes_or_no(response: str, official: str | None, strict: str | None) -> None:
    assert said_yes_or_no(response, "official") == official
    assert said_yes_or_no(response, "strict") == strict


def test_load_refuses_a_picture_with_one_question(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two questions"):
        MME().load(tsv(tmp_path, FACTS[1:]), None)


def test_load_refuses_a_set_without_a_subtask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 missing: color"):
        MME().load(tsv(tmp_path, FACTS[4:]), None)


@pytest.mark.parametrize(("field", "value"), [(0, "colour"), (3, "Maybe")])
def test_load_refuses_unknown_subtasks_and_answers(field: int, value: str, tmp_path: Path) -> None:
    bad = [*FACTS[0]]
    bad[field] = value
    with pytest.raises(DataError, match=value):
        MME().load(tsv(tmp_path, [tuple(bad), *FACTS[1:]]), None)


def test_load_refuses_a_text_without_its_picture(tmp_path: Path) -> None:
    folder = release(tmp_path)
    (folder / "color" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"not one picture.*1\.txt"):
        MME().load(folder, None)
