"""LongVideoBench, without subtitles: 1,337 questions of its validation set on videos of up to an hour.

Files: the folder of longvideobench/LongVideoBench (lvb_val.json and videos/), its validation parquet file (the options
in the columns option0 to option4, "N/A" where there are fewer), or lvb_val.json itself.
"""

from pathlib import Path

from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.evaluation.benchmarks.choice import DIRECT_LETTER
from megatron_moe_grpo.evaluation.benchmarks.dataset_folder import find_annotations, find_root
from megatron_moe_grpo.evaluation.benchmarks.first_letter import FirstLetterBenchmark
from megatron_moe_grpo.evaluation.benchmarks.row_values import (
    RawRow,
    benchmark_rows,
    lettered,
    refuse_twins,
    text,
    texts,
)
from megatron_moe_grpo.evaluation.benchmarks.row_videos import find_video

ANNOTATIONS = ("lvb_val.json", "LongVideoBench.tsv", "validation-00000-of-00001.parquet")
NO_OPTION = "N/A"


class LongVideoBench(FirstLetterBenchmark):
    """Shares overall, by group of durations and by category of question; a video's questions are one group."""

    name = "long_video_bench"
    letters = "ABCDE"

    def load(self, path: Path, image_root: Path | None) -> list[Question]:
        """Rows of either file; `missing_file` where there is no video."""
        annotations = find_annotations(path, ANNOTATIONS)
        root = find_root(path, image_root, ("videos",))
        return refuse_twins([_question(raw, root, place) for raw, place in benchmark_rows(annotations)], annotations)


def _question(raw: RawRow, root: Path, place: RowPlace) -> Question:
    options = lettered(_candidates(raw, place), place)
    # VLMEvalKit's table writes ./videos/ before the name.
    name = text(raw, "video_path", place).removeprefix("./").removeprefix("videos/")
    video = find_video([name], root, place)
    return Question(
        id=text(raw, "id", place),
        prompt="\n".join([text(raw, "question", place), *options, DIRECT_LETTER]),
        visuals=video.visuals,
        reference=_reference(raw, options, place),
        options=options,
        facets={
            "duration_group": text(raw, "duration_group", place),
            "question_category": text(raw, "question_category", place),
        },
        group=name,
        missing_file=video.missing_file,
    )


def _candidates(raw: RawRow, place: RowPlace) -> list[str]:
    if "candidates" in raw:
        return texts(raw, "candidates", place)
    columns = [text(raw, f"option{number}", place) for number in range(5) if f"option{number}" in raw]
    return [option for option in columns if option != NO_OPTION]


def _reference(raw: RawRow, options: tuple[str, ...], place: RowPlace) -> str:
    number = raw.get("correct_choice")
    if isinstance(number, str) and number.isascii() and number.isdigit():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(options):
        raise place.problem(
            "correct_choice", "not the number of an option", got=shown(number), expected=f"0 to {len(options) - 1}"
        )
    return options[number][0]
