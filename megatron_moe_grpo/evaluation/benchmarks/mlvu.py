"""MLVU, the seven multiple-choice tasks of its dev set; its two open tasks need another model as their judge.

Files: the folder of MLVU/MVLU, or the MLVU/ in it: json/1_plotQA.json, ... and video/1_plotQA/, ....
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_moe_grpo.data.row_place import RowPlace
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question, Score
from megatron_moe_grpo.evaluation.benchmarks.dataset_folder import task_files
from megatron_moe_grpo.evaluation.benchmarks.lettered_video import LetteredVideoBenchmark, lettered_prompt
from megatron_moe_grpo.evaluation.benchmarks.row_values import (
    RawRow,
    benchmark_rows,
    letter_of_text,
    lettered,
    text,
    texts,
)
from megatron_moe_grpo.evaluation.benchmarks.row_videos import find_video
from megatron_moe_grpo.evaluation.benchmarks.scores import mean_of_shares, share, shares_of

INSTRUCTION = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question."
)
TASKS = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")


class MLVU(LetteredVideoBenchmark):
    """`overall` is M-Avg, the mean over the tasks."""

    name = "mlvu"

    def load(self, path: Path, image_root: Path | None) -> list[Question]:
        """All tasks in the order of their numbers; `missing_file` where there is no video."""
        folder = path / "MLVU" if (path / "MLVU").is_dir() else path
        root = image_root or folder / "video"
        return [
            _question(file.stem, raw, root, place)
            for file in task_files(folder / "json", TASKS)
            for raw, place in benchmark_rows(file)
        ]

    def score(self, questions: Sequence[Question], is_correct: Mapping[str, bool]) -> list[Score]:
        """M-Avg, `questions` (each question counted once, as VLMEvalKit's M-Avg), then each task."""
        tasks = shares_of("task", questions, is_correct)
        by_question = share("questions", [is_correct[question.id] for question in questions])
        return [mean_of_shares("overall", tasks), by_question, *tasks]


def _question(task: str, raw: RawRow, root: Path, place: RowPlace) -> Question:
    options = lettered(texts(raw, "candidates", place), place)
    name = text(raw, "video", place)
    video = find_video([f"{task}/{name}"], root, place)
    return Question(
        id=f"{task}/{place.line_number}",
        prompt=lettered_prompt(INSTRUCTION, text(raw, "question", place), options),
        visuals=video.visuals,
        reference=letter_of_text(text(raw, "answer", place), options, place),
        options=options,
        facets={"task": task.partition("_")[2]},
        group=f"{task}/{name}",
        missing_file=video.missing_file,
    )
