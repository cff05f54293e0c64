"""R1-V's sets: pictures inside the rows (GEOQA_R1V_Train_8K, clevr_cogen_a_train), and its lists of test prompts.

Columns `image`, `problem`, `solution` (with <answer> tags), in distilled sets `thinking`; no type of problem.  R1-V
judges all of them alike, by math-verify, so their type is `math`.  The test lists have `image_path`, `question` and
`ground_truth`, a text or a whole number.
"""

from collections.abc import Mapping
from typing import Any

from megatron_moe_grpo.data.row_place import RowPlace
from megatron_moe_grpo.data.row_texts import number_as_text

PROBLEM_TYPE = "math"
TEST_COLUMNS = {"image_path", "question", "ground_truth"}


def is_r1v(raw: Mapping[str, Any]) -> bool:
    """A picture inside the row and no type, or a test prompt.  A row with a path must name its type itself."""
    if raw.keys() >= TEST_COLUMNS:
        return True
    return (
        "problem" in raw and "solution" in raw and "problem_type" not in raw and isinstance(raw.get("image"), Mapping)
    )


def from_r1v(raw: Mapping[str, Any], place: RowPlace) -> dict[str, Any]:
    """The row with our columns.  Raises DataError: a `ground_truth` that is neither text nor number."""
    row = {"problem_type": PROBLEM_TYPE} | dict(raw)
    if raw.keys() >= TEST_COLUMNS:
        row |= {
            "image": raw["image_path"],
            "problem": raw["question"],
            "solution": number_as_text(raw["ground_truth"], "ground_truth", place),
        }
    return row
