"""Video-MME and LongVideoBench: where their videos are, how their tools read answers, breakdown by duration."""

from pathlib import Path
from typing import Any

import pytest
from benchmark_files import scores_of, values_of, write_json, write_parquet, write_tsv, write_video

from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.evaluation.benchmarks.first_letter import first_letter
from megatron_moe_grpo.evaluation.benchmarks.long_video_bench import LongVideoBench
from megatron_moe_grpo.evaluation.benchmarks.video_mme import VideoMME

OPTIONS = ["A. Red.", "B. Green.", "C. Blue.", "D. None."]


def mme_row(number: int, duration: str, answer: str = "B") -> dict[str, Any]:
    return {
        "video_id": f"{number:03d}", "duration": duration, "domain": "Knowledge", "sub_category": "Astronomy",
        "url": "https://www.youtube.com/watch?v=x", "videoID": f"v{number}", "question_id": f"{number:03d}-1",
        "task_type": "OCR Problems", "question": "Which colour?", "options": OPTIONS, "answer": answer,
    }  # fmt: skip


def video_mme(tmp_path: Path) -> Path:
    rows = [mme_row(1, "short"), mme_row(2, "long"), mme_row(3, "long")]
    write_parquet(tmp_path / "videomme" / "test-00000-of-00001.parquet", rows)
    write_video(tmp_path / "data" / "v1.mp4")
    write_video(tmp_path / "data" / "v2.mkv")
    return tmp_path


def test_video_mme_finds_its_videos(tmp_path: Path) -> None:
    questions = VideoMME().load(video_mme(tmp_path), None)
    assert [question.missing_file for question in questions] == [None, None, "v3.mp4"]
    assert [files.paths[0].name for question in questions for files in question.visuals] == ["v1.mp4", "v2.mkv"]
    assert questions[0].prompt == (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\nWhich colour?\nA. Red.\nB. Green.\nC. Blue.\nD. None.\n"
        "The best answer is:"
    )
    by_file = VideoMME().load(tmp_path / "videomme" / "test-00000-of-00001.parquet", None)
    assert by_file == questions


def test_video_mme_reads_vlmevalkits_table(tmp_path: Path) -> None:
    row = {
        "index": 0, "video": "v1", "video_path": "./video/v1.mp4", "duration": "short", "domain": "Knowledge",
        "candidates": str(OPTIONS), "sub_category": "Law", "task_type": "OCR Problems",
        "subtitle_path": "./subtitle/v1.srt", "question": "Which colour?", "answer": "B",
    }  # fmt: skip
    write_video(tmp_path / "video" / "v1.mp4")
    write_tsv(tmp_path / "Video-MME.tsv", [row])
    (question,) = VideoMME().load(tmp_path, None)
    assert (question.options, question.missing_file) == (tuple(OPTIONS), None)


def test_video_mme_scores_by_duration(tmp_path: Path) -> None:
    questions = VideoMME().load(video_mme(tmp_path), None)
    scores = values_of(scores_of(VideoMME(), questions, ["B", "Because it is late", "C"], "official"))
    assert scores["overall"] == pytest.approx(2 / 3)
    assert (scores["duration.short"], scores["duration.long"]) == (1.0, 0.5)
    strict = values_of(scores_of(VideoMME(), questions, ["B", "Because it is late", "C"], "strict"))
    assert strict["overall"] == pytest.approx(1 / 3)


def test_video_mme_refuses_a_folder_without_annotations(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not hold"):
        VideoMME().load(tmp_path, None)


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("The best answer is C.", "C"),  # the B of "best" is small; "The" has none
        ("The correct option is: D", "D"),
        ("Best option: (A)", "A"),
        ("Answer: B", "B"),
        ("Because", "B"),
        ("Correct: D", "C"),
        ("e", None),
        ("", None),
        ("<think>A or B</think>D", "D"),
        ("<think>A", None),
    ],
)
def test_first_letter(response: str, letter: str | None) -> None:
    assert first_letter(response, "ABCD") == letter


def lvb_row(number: int, duration_group: int, correct: int) -> dict[str, Any]:
    return {
        "video_id": f"v{number}", "question": "Which?", "candidates": ["w", "x", "y", "z", "none"][: 5 - number],
        "correct_choice": correct, "position": [1], "topic_category": "NP-News-Programs", "question_category": "S2E",
        "level": "L1-Perception", "id": f"v{number}_0", "video_path": f"v{number}.mp4",
        "subtitle_path": f"v{number}_en.json", "duration_group": duration_group,
        "starting_timestamp_for_subtitles": 0, "duration": 12.3, "view_count": 5,
    }  # fmt: skip


def long_video_bench(tmp_path: Path) -> Path:
    write_json(tmp_path / "lvb_val.json", [lvb_row(0, 15, 4), lvb_row(1, 3600, 0)])
    for name in ("v0", "v1"):
        write_video(tmp_path / "videos" / f"{name}.mp4")
    return tmp_path


def test_long_video_bench_reads_numbers_as_answers(tmp_path: Path) -> None:
    first, last = LongVideoBench().load(long_video_bench(tmp_path), None)
    assert (first.reference, last.reference, len(last.options)) == ("E", "A", 4)
    assert first.prompt == (
        "Which?\nA. w\nB. x\nC. y\nD. z\nE. none\nAnswer with the option's letter from the given choices directly."
    )
    assert first.visuals[0].paths[0] == (tmp_path / "videos" / "v0.mp4").resolve()


def test_long_video_bench_counts_what_cannot_be_read_as_wrong(tmp_path: Path) -> None:
    questions = LongVideoBench().load(long_video_bench(tmp_path), None)
    scores = values_of(scores_of(LongVideoBench(), questions, ["E", "no idea"], "official"))
    assert scores == {
        "overall": 0.5, "duration_group.15": 1.0, "duration_group.3600": 0.0, "question_category.S2E": 0.5,
    }  # fmt: skip


def test_long_video_bench_reads_the_parquet_copy(tmp_path: Path) -> None:
    long_video_bench(tmp_path)
    rows = []
    for row in (lvb_row(0, 15, 4), lvb_row(1, 3600, 0)):
        texts = row.pop("candidates")
        rows.append(row | {f"option{i}": texts[i] if i < len(texts) else "N/A" for i in range(5)})
    path = write_parquet(tmp_path / "validation-00000-of-00001.parquet", rows)
    assert LongVideoBench().load(path, None) == LongVideoBench().load(tmp_path, None)


@pytest.mark.parametrize("correct", [5, -1, True, "x", None])
def test_long_video_bench_refuses_a_number_of_no_option(correct: object, tmp_path: Path) -> None:
    long_video_bench(tmp_path)
    write_json(tmp_path / "lvb_val.json", [lvb_row(0, 15, 0) | {"correct_choice": correct}])
    with pytest.raises(DataError, match="not the number of an option"):
        LongVideoBench().load(tmp_path, None)


@pytest.mark.parametrize("path", ["../out.mp4", "/etc/passwd"])
def test_a_video_outside_its_folder_is_not_read(path: str, tmp_path: Path) -> None:
    long_video_bench(tmp_path)
    write_video(tmp_path / "out.mp4")
    write_json(tmp_path / "lvb_val.json", [lvb_row(0, 15, 0) | {"video_path": path}])
    with pytest.raises(DataError, match="leaves the image root"):
        LongVideoBench().load(tmp_path, None)
