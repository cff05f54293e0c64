"""Video-MME, without subtitles: 2,700 questions on 900 videos.

Files: the folder of lmms-lab/Video-MME (videomme/test-00000-of-00001.parquet, videos in data/ or video/), its parquet
file, or VLMEvalKit's Video-MME.tsv beside video/.
"""

from pathlib import Path

from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.evaluation.benchmarks.choice import facets_of
from megatron_moe_grpo.evaluation.benchmarks.dataset_folder import find_annotations, find_root
from megatron_moe_grpo.evaluation.benchmarks.first_letter import FirstLetterBenchmark
from megatron_moe_grpo.evaluation.benchmarks.row_values import (
    RawRow,
    answer_letter,
    benchmark_rows,
    refuse_twins,
    text,
    texts,
)
from megatron_moe_grpo.evaluation.benchmarks.row_videos import find_video

PROMPT = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option.\n{question}\nThe best answer is:"
)
ANNOTATIONS = ("videomme/test-00000-of-00001.parquet", "Video-MME.tsv", "test-00000-of-00001.parquet")
VIDEO_FOLDERS = ("data", "video", "videos", "../data", "../video")
SUFFIXES = (".mp4", ".MP4", ".mkv")


class VideoMME(FirstLetterBenchmark):
    """Shares overall, by duration, domain, sub-category and task; a video's questions are one group."""

    name = "video_mme"
    letters = "ABCD"

    def load(self, path: Path, image_root: Path | None) -> list[Question]:
        """Rows of either table; `missing_file` where there is no video."""
        annotations = find_annotations(path, ANNOTATIONS)
        root = find_root(path, image_root, VIDEO_FOLDERS)
        return refuse_twins([_question(raw, root, place) for raw, place in benchmark_rows(annotations)], annotations)


def _question(raw: RawRow, root: Path, place: RowPlace) -> Question:
    # The parquet file has `options` with letters in them; VLMEvalKit's table calls the same list `candidates`.
    options = tuple(texts(raw, "options" if "options" in raw else "candidates", place))
    if [option[:3] for option in options] != [f"{letter}. " for letter in "ABCD"]:
        raise place.problem("options", "not four options with letters", got=shown(list(options)))
    video_id = text(raw, "videoID" if "videoID" in raw else "video", place)
    video = find_video([f"{video_id}{suffix}" for suffix in SUFFIXES], root, place)
    return Question(
        id=text(raw, "question_id" if "question_id" in raw else "index", place),
        prompt=PROMPT.replace("{question}", "\n".join([text(raw, "question", place), *options])),
        visuals=video.visuals,
        reference=answer_letter(raw, options, place),
        options=options,
        facets=facets_of(raw, "duration", "domain", "sub_category", "task_type"),
        group=video_id,
        missing_file=video.missing_file,
    )
