"""MMT-Bench: 162 subtasks of 32 meta-tasks, up to nine options and several pictures.

Files: VLMEvalKit's MMT-Bench_VAL.tsv, MMT-Bench_VAL_MI.tsv (several pictures: the cell spells a list of base64 texts)
and their kin, or the parquet files of lmms-lab/MMT-Benchmark.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_moe_grpo.data.row_place import RowPlace
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question, Score
from megatron_moe_grpo.evaluation.benchmarks.choice import ChoiceBenchmark, facets_of, table_prompt
from megatron_moe_grpo.evaluation.benchmarks.row_pictures import pictures
from megatron_moe_grpo.evaluation.benchmarks.row_values import (
    RawRow,
    answer_letter,
    benchmark_rows,
    option_columns,
    refuse_twins,
    text,
)
from megatron_moe_grpo.evaluation.benchmarks.scores import mean_of_shares, share, shares_of, split_by


class MMTBench(ChoiceBenchmark):
    """Overall a share of questions; a meta-task (`l2_category`) is the mean of its subtasks (`category`)."""

    name = "mmt_bench"

    def load(self, path: Path, image_root: Path | None) -> list[Question]:
        """Rows of the table."""
        root = image_root or path.parent
        return refuse_twins([_question(raw, root, place) for raw, place in benchmark_rows(path)], path)

    def score(self, questions: Sequence[Question], is_correct: Mapping[str, bool]) -> list[Score]:
        """`overall`, meta-tasks, subtasks."""
        overall = share("overall", [is_correct[question.id] for question in questions])
        meta_tasks = split_by(lambda question: question.facets.get("l2_category", ""), questions)
        means = [
            mean_of_shares(f"l2_category.{name}", shares_of("category", part, is_correct))
            for name, part in sorted(meta_tasks.items())
            if name
        ]
        return [overall, *means, *shares_of("category", questions, is_correct)]


def _question(raw: RawRow, image_root: Path, place: RowPlace) -> Question:
    options = option_columns(raw, place)
    facets = facets_of(raw, "category", "l2_category")
    if "l2_category" in facets and "category" not in facets:
        raise place.problem("category", "a meta-task without its subtask", got=facets["l2_category"])
    return Question(
        id=text(raw, "index", place),
        prompt=table_prompt(raw, text(raw, "question", place), options),
        visuals=pictures(raw, image_root, place),
        reference=answer_letter(raw, options, place),
        options=options,
        facets=facets,
    )
