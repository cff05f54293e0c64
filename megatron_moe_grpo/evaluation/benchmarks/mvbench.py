"""MVBench: 20 tasks of 200 questions on short videos.

Files: the folder of OpenGVLab/MVBench: json/TASK.json and video/ with the unpacked archives.  In five tasks the
question is about a part of the video, from `start` to `end`; TVQA's videos are folders of frames, three a second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_moe_grpo.data.row_place import RowPlace, shown
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
from megatron_moe_grpo.evaluation.benchmarks.row_videos import FoundVideo, find_frames, find_video
from megatron_moe_grpo.evaluation.benchmarks.scores import mean_of_shares, shares_of

INSTRUCTION = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question."
)
TVQA_FRAMES_PER_SECOND = 3.0


@dataclass(frozen=True)
class Task:
    """Where one task's videos are, below video/."""

    folder: str
    has_bound: bool = False
    is_frames: bool = False


# File name -> videos, as the authors' table has them.
TASKS = {
    "action_sequence": Task("star/Charades_v1_480", has_bound=True),
    "action_prediction": Task("star/Charades_v1_480", has_bound=True),
    "action_antonym": Task("ssv2_video"),
    "fine_grained_action": Task("Moments_in_Time_Raw/videos"),
    "unexpected_action": Task("FunQA_test/test"),
    "object_existence": Task("clevrer/video_validation"),
    "object_interaction": Task("star/Charades_v1_480", has_bound=True),
    "object_shuffle": Task("perception/videos"),
    "moving_direction": Task("clevrer/video_validation"),
    "action_localization": Task("sta/sta_video", has_bound=True),
    "scene_transition": Task("scene_qa/video"),
    "action_count": Task("perception/videos"),
    "moving_count": Task("clevrer/video_validation"),
    "moving_attribute": Task("clevrer/video_validation"),
    "state_change": Task("perception/videos"),
    "fine_grained_pose": Task("nturgbd"),
    "character_order": Task("perception/videos"),
    "egocentric_navigation": Task("vlnqa"),
    "episodic_reasoning": Task("tvqa/frames_fps3_hq", has_bound=True, is_frames=True),
    "counterfactual_inference": Task("clevrer/video_validation"),
}


class MVBench(LetteredVideoBenchmark):
    """`overall` is the mean over the tasks."""

    name = "mvbench"

    def load(self, path: Path, image_root: Path | None) -> list[Question]:
        """All tasks in the authors' order; `missing_file` where there is no video."""
        root = image_root or path / "video"
        return [
            _question(file.stem, raw, root, place)
            for file in task_files(path / "json", list(TASKS))
            for raw, place in benchmark_rows(file)
        ]

    def score(self, questions: Sequence[Question], is_correct: Mapping[str, bool]) -> list[Score]:
        """The mean, then each task."""
        tasks = shares_of("task", questions, is_correct)
        return [mean_of_shares("overall", tasks), *tasks]


def _question(task: str, raw: RawRow, root: Path, place: RowPlace) -> Question:
    options = lettered(texts(raw, "candidates", place), place)
    video = _video(TASKS[task], raw, root, place)
    return Question(
        id=f"{task}/{place.line_number}",
        prompt=lettered_prompt(INSTRUCTION, text(raw, "question", place), options),
        visuals=video.visuals,
        reference=letter_of_text(text(raw, "answer", place), options, place),
        options=options,
        facets={"task": task},
        group=f"{TASKS[task].folder}/{text(raw, 'video', place)}",
        missing_file=video.missing_file,
    )


def _video(task: Task, raw: RawRow, root: Path, place: RowPlace) -> FoundVideo:
    seconds = _bound(raw, place) if task.has_bound else None
    name = text(raw, "video", place)
    if task.is_frames:
        return find_frames(f"{task.folder}/{name}", root, place, TVQA_FRAMES_PER_SECOND, seconds)
    # The archives of CLEVRER and STAR unpack into a folder more.
    return find_video([f"{task.folder}/{name}", f"data0613/{task.folder}/{name}"], root, place, seconds)


def _bound(raw: RawRow, place: RowPlace) -> tuple[float, float]:
    values = raw.get("start"), raw.get("end")
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1]:
        raise place.problem(
            "start", "not a part of the video", got=shown(values), expected="0 <= start <= end, seconds"
        )
    return float(numbers[0]), float(numbers[1])
