"""MVBench and MLVU: parts of videos, folders of frames, answers as texts, means over tasks."""

from pathlib import Path
from typing import Any

import pytest
from benchmark_files import png, scores_of, values_of, write_json, write_video

from megatron_moe_grpo.data.visuals import read_visual
from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.evaluation.benchmarks.mlvu import MLVU
from megatron_moe_grpo.evaluation.benchmarks.mlvu import TASKS as MLVU_TASKS
from megatron_moe_grpo.evaluation.benchmarks.mvbench import TASKS, MVBench

CANDIDATES = ["Opened the door.", "Sat down.", "Left."]


def row(video: str, **more: Any) -> dict[str, Any]:
    return {"video": video, "question": "What happened?", "candidates": CANDIDATES, "answer": "Sat down.", **more}


SHOWN = ("action_sequence", "moving_count", "episodic_reasoning")


def load(path: Path) -> list[Question]:
    """The questions of the three tasks that are looked at."""
    return [question for question in MVBench().load(path, None) if question.facets["task"] in SHOWN]


def mvbench(tmp_path: Path) -> Path:
    for task in TASKS:
        write_json(tmp_path / "json" / f"{task}.json", [row("other.mp4", start=0.0, end=1.0)])
    write_json(tmp_path / "json" / "action_sequence.json", [row("a.mp4", start=0.2, end=0.4)])
    write_json(tmp_path / "json" / "moving_count.json", [row("b.mp4"), row("c.mp4")])
    write_json(tmp_path / "json" / "episodic_reasoning.json", [row("clip", start=1.0, end=2.4, fps=3)])
    write_video(tmp_path / "video" / "star" / "Charades_v1_480" / "a.mp4", num_frames=25)
    write_video(tmp_path / "video" / "data0613" / "clevrer" / "video_validation" / "b.mp4")
    frames = tmp_path / "video" / "tvqa" / "frames_fps3_hq" / "clip"
    frames.mkdir(parents=True)
    for number in range(1, 11):
        (frames / f"{number:05d}.jpg").write_bytes(png(number))
    return tmp_path


def test_mvbench_reads_tasks_in_their_order(tmp_path: Path) -> None:
    questions = load(mvbench(tmp_path))
    assert [question.id for question in questions] == [
        "action_sequence/1", "moving_count/1", "moving_count/2", "episodic_reasoning/1",
    ]  # fmt: skip
    assert {question.reference for question in questions} == {"B"}
    assert [question.missing_file for question in questions] == [
        None, None, "clevrer/video_validation/c.mp4", None,
    ]  # fmt: skip
    assert questions[0].prompt.endswith(
        "addresses the question.\nQuestion: What happened?\nOptions:\n(A) Opened the door.\n(B) Sat down.\n(C) Left.\n"
        "Only give the best option."
    )


def test_mvbench_shows_the_part_that_is_asked_about(tmp_path: Path) -> None:
    part, _, _, frames = load(mvbench(tmp_path))
    # Frames 5 to 10 of 25 a second; three a second from second 1 to 2.4 are frames 3 to 7.
    assert part.visuals[0].seconds == (0.2, 0.4)
    assert len(read_visual(part.visuals[0], 8).frames) == 6
    assert [path.stem for path in frames.visuals[0].paths] == ["00003", "00004", "00005", "00006", "00007"]


@pytest.mark.parametrize(
    ("start", "end", "names"), [(0.0, 0.0, ["00001"]), (3.2, 9.0, ["00010"]), (0.0, 0.4, ["00001"])]
)
def test_mvbench_shows_one_frame_at_least(start: float, end: float, names: list[str], tmp_path: Path) -> None:
    write_json(mvbench(tmp_path) / "json" / "episodic_reasoning.json", [row("clip", start=start, end=end)])
    assert [path.stem for path in load(tmp_path)[-1].visuals[0].paths] == names


def test_mvbench_refuses_a_time_without_frames(tmp_path: Path) -> None:
    write_json(mvbench(tmp_path) / "json" / "episodic_reasoning.json", [row("clip", start=8.0, end=9.0)])
    with pytest.raises(DataError, match="no frames"):
        load(tmp_path)


def test_mvbench_is_a_mean_over_tasks(tmp_path: Path) -> None:
    questions = load(mvbench(tmp_path))
    scores = values_of(scores_of(MVBench(), questions, ["(B) Sat down.", "B", "(A)", "C"], "strict"))
    assert scores == {
        "overall": 0.5, "task.action_sequence": 1.0, "task.episodic_reasoning": 0.0, "task.moving_count": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("response", "is_right"),
    [
        ("(B", True), ("b) Sat down.", True), ("B. because A is not", True), ("(B)is right", True),
        ("Sat down.", True), ("A man sat down.", False), ("", False), (")", False), ("It is option B", True),
        ("<think>A</think>", False),
    ],
)  # fmt: skip
def test_mvbench_official_looks_at_the_first_word(response: str, is_right: bool, tmp_path: Path) -> None:
    question = load(mvbench(tmp_path))[1]
    assert MVBench().is_correct(question, response, "official") == is_right


@pytest.mark.parametrize(
    "bound", [{}, {"start": 2.0, "end": 1.0}, {"start": "0", "end": 1.0}, {"start": -1.0, "end": 1.0}]
)
def test_mvbench_refuses_a_part_that_cannot_be(bound: dict[str, Any], tmp_path: Path) -> None:
    write_json(mvbench(tmp_path) / "json" / "action_sequence.json", [row("a.mp4", **bound)])
    with pytest.raises(DataError, match="not a part of the video"):
        MVBench().load(tmp_path, None)


@pytest.mark.parametrize("candidates", ["[1, 2", "__import__('os').getcwd()", "", [], None, ["one"]])
def test_mvbench_refuses_candidates_that_are_no_list(candidates: object, tmp_path: Path) -> None:
    write_json(mvbench(tmp_path) / "json" / "moving_count.json", [row("b.mp4") | {"candidates": candidates}])
    with pytest.raises(DataError):
        MVBench().load(tmp_path, None)


def test_mvbench_refuses_an_answer_that_is_no_option(tmp_path: Path) -> None:
    write_json(mvbench(tmp_path) / "json" / "moving_count.json", [row("b.mp4") | {"answer": "Sat up."}])
    with pytest.raises(DataError, match="none of the options"):
        MVBench().load(tmp_path, None)


def test_mvbench_has_all_of_its_tasks(tmp_path: Path) -> None:
    questions = MVBench().load(mvbench(tmp_path), None)
    assert len({question.facets["task"] for question in questions}) == 20
    (tmp_path / "json" / "state_change.json").unlink()
    with pytest.raises(DataError, match=r"1 of 20 missing: state_change\.json"):
        MVBench().load(tmp_path, None)


def mlvu(tmp_path: Path) -> Path:
    for task in MLVU_TASKS:
        write_json(tmp_path / "MLVU" / "json" / f"{task}.json", [row("other.mp4")])
    count = {"video": "k.mp4", "duration": 480, "question": "How many?", "candidates": [0, 1, 2, 3], "answer": 2}
    write_json(tmp_path / "MLVU" / "json" / "1_plotQA.json", [row("a.mp4", duration=60, question_type="plotQA")] * 3)
    write_json(tmp_path / "MLVU" / "json" / "4_count.json", [count | {"question_type": "count"}])
    write_video(tmp_path / "MLVU" / "video" / "1_plotQA" / "a.mp4")
    write_video(tmp_path / "MLVU" / "video" / "4_count" / "k.mp4")
    return tmp_path


def test_mlvu_has_both_averages(tmp_path: Path) -> None:
    questions = MLVU().load(mlvu(tmp_path), None)
    assert MLVU().load(tmp_path / "MLVU", None) == questions
    assert [question.facets["task"] for question in questions] == [
        "plotQA", "plotQA", "plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning",
    ]  # fmt: skip
    questions = [question for question in questions if question.facets["task"] in ("plotQA", "count")]
    assert (questions[3].reference, questions[3].options[2]) == ("C", "C. 2")
    scores = values_of(scores_of(MLVU(), questions, ["B", "B", "(A)", "(A) 0"], "official"))
    assert scores == pytest.approx({"overall": 1 / 3, "questions": 0.5, "task.count": 0.0, "task.plotQA": 2 / 3})
