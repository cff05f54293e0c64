"""MMBench: multiple choice, each question asked once for every rolled order of its options.

Files: VLMEvalKit's MMBench_DEV_EN.tsv and its kin, or the parquet files of lmms-lab/MMBench.  Rolled copies have the
index of their question plus a multiple of a million; their `image` cell may be the index of the row with the picture.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.errors import DataError
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
from megatron_moe_grpo.evaluation.benchmarks.scores import share, shares_by_facet, split_by

ROLLED = 1_000_000


class MMBench(ChoiceBenchmark):
    """A question counts as right only if all of its rolled copies are (CircularEval)."""

    name = "mmbench"
    counts_groups = True

    def load(self, path: Path, image_root: Path | None) -> list[Question]:
        """Rows of the table.  Raises DataError: also a rolled copy without its question."""
        questions = [_question(raw, image_root or path.parent, place) for raw, place in benchmark_rows(path)]
        ids = {question.id for question in questions}
        for question in questions:
            if question.group not in ids:
                raise DataError(
                    f"{path}: a rolled copy without its question",
                    got=f"index {question.id}",
                    expected=f"a row with index {question.group}",
                    remedy="download the file again: the circular score needs all copies",
                )
        return refuse_twins(questions, path)

    def score(self, questions: Sequence[Question], is_correct: Mapping[str, bool]) -> list[Score]:
        """Circular shares; then `vanilla`: questions in their first order alone, and `all_rows`: each row by itself."""
        groups = split_by(lambda question: question.group, questions)
        firsts = [question for question in questions if question.id == question.group]
        all_right = {first.id: all(is_correct[copy.id] for copy in groups[first.id]) for first in firsts}
        vanilla = share("vanilla", [is_correct[first.id] for first in firsts])
        all_rows = share("all_rows", [is_correct[question.id] for question in questions])
        return [*shares_by_facet(firsts, all_right), vanilla, all_rows]


def _question(raw: RawRow, image_root: Path, place: RowPlace) -> Question:
    index = text(raw, "index", place)
    if not index.isascii() or not index.isdigit():
        raise place.problem("index", "not a whole number", got=shown(index))
    options = option_columns(raw, place)
    return Question(
        id=str(int(index)),
        prompt=table_prompt(raw, text(raw, "question", place), options),
        visuals=pictures(raw, image_root, place),
        reference=answer_letter(raw, options, place),
        options=options,
        facets=facets_of(raw, "l2_category", "category"),
        group=str(int(index) % ROLLED),
    )
