"""MMStar: 1,500 questions that cannot be answered without their picture.

Files: the parquet file of Lin-Chen/MMStar, whose options stand in the question ("Options: A: .., B: .."), or
VLMEvalKit's MMStar.tsv, with the columns A to D.
"""

import re
from pathlib import Path

from megatron_moe_grpo.data.row_place import RowPlace
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.evaluation.benchmarks.choice import DIRECT_LETTER, ChoiceBenchmark, facets_of, table_prompt
from megatron_moe_grpo.evaluation.benchmarks.row_pictures import pictures
from megatron_moe_grpo.evaluation.benchmarks.row_values import (
    RawRow,
    answer_letter,
    benchmark_rows,
    option_columns,
    refuse_twins,
    text,
)

INLINE = re.compile(r"Options:\s*A:\s*(.*?),?\s+B:\s*(.*?),?\s+C:\s*(.*?),?\s+D:\s*(.*?)\s*\Z", re.DOTALL)


class MMStar(ChoiceBenchmark):
    """Shares overall, by its 6 core capabilities (`category`) and by its 18 axes (`l2_category`)."""

    name = "mmstar"

    def load(self, path: Path, image_root: Path | None) -> list[Question]:
        """Rows of the table."""
        root = image_root or path.parent
        return refuse_twins([_question(raw, root, place) for raw, place in benchmark_rows(path)], path)


def _question(raw: RawRow, image_root: Path, place: RowPlace) -> Question:
    question = text(raw, "question", place)
    if "A" in raw:
        options = option_columns(raw, place)
        prompt = table_prompt(raw, question, options)
    else:
        options = _inline_options(question)
        prompt = f"{question}\n{DIRECT_LETTER}"
    return Question(
        id=text(raw, "index", place),
        prompt=prompt,
        visuals=pictures(raw, image_root, place),
        reference=answer_letter(raw, options, place),
        options=options,
        facets=facets_of(raw, "category", "l2_category"),
    )


def _inline_options(question: str) -> tuple[str, ...]:
    """The four options inside the question; where they are written otherwise, letters without their texts."""
    match = INLINE.search(question)
    found = match.groups() if match else ("", "", "", "")
    return tuple(f"{letter}. {' '.join(option.split())}" for letter, option in zip("ABCD", found, strict=True))
