"""AI2D: diagrams of grade-school science.

Files: VLMEvalKit's AI2D_TEST.tsv or AI2D_TEST_NO_MASK.tsv (columns A to D, the answer a letter), or the parquet files
of lmms-lab/ai2d (`options` a list, `answer` the number of the right one, from 0).
"""

from pathlib import Path

from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.evaluation.benchmarks.choice import DIRECT_LETTER, ChoiceBenchmark, facets_of, table_prompt
from megatron_moe_grpo.evaluation.benchmarks.row_pictures import pictures
from megatron_moe_grpo.evaluation.benchmarks.row_values import (
    RawRow,
    answer_letter,
    benchmark_rows,
    lettered,
    option_columns,
    refuse_twins,
    text,
    texts,
)


class AI2D(ChoiceBenchmark):
    """One share, and shares by `category` where the table has it."""

    name = "ai2d"

    def load(self, path: Path, image_root: Path | None) -> list[Question]:
        """Rows of either table."""
        root = image_root or path.parent
        return refuse_twins([_question(raw, root, place) for raw, place in benchmark_rows(path)], path)


def _question(raw: RawRow, image_root: Path, place: RowPlace) -> Question:
    question = text(raw, "question", place)
    if "options" in raw:
        # The parquet files have no ids: a row is known by its number.
        row_id = str(place.line_number)
        options = lettered(texts(raw, "options", place), place)
        reference = _letter_of_number(raw, options, place)
        prompt = "\n".join([question, *options, DIRECT_LETTER])
    else:
        row_id = text(raw, "index", place)
        options = option_columns(raw, place)
        reference = answer_letter(raw, options, place)
        prompt = table_prompt(raw, question, options)
    return Question(
        id=row_id,
        prompt=prompt,
        visuals=pictures(raw, image_root, place),
        reference=reference,
        options=options,
        facets=facets_of(raw, "category"),
    )


def _letter_of_number(raw: RawRow, options: tuple[str, ...], place: RowPlace) -> str:
    number = text(raw, "answer", place)
    if not number.isascii() or not number.isdigit() or int(number) >= len(options):
        raise place.problem(
            "answer", "not the number of an option", got=shown(raw["answer"]), expected=f"0 to {len(options) - 1}"
        )
    return options[int(number)][0]
