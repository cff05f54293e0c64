"""MMBench's rows, and those of benchmarks in its form: `index`, `image`, `question`, `hint`, `A`, `B`, ..., `answer`.

The picture is base64 (where it lies in another row, `files/tsv_file.py` has fetched it).  The category, where given, is
what accuracies are grouped by.  Every row counts by itself: MMBench's circular score, which joins rows with rolled
options, is not computed.
"""

import string
from collections.abc import Mapping
from typing import Any

from megatron_moe_grpo.data.embedded_image import base64_content
from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.data.row_texts import as_texts


def is_mmbench(raw: Mapping[str, Any]) -> bool:
    """Whether there are a question and a column A."""
    return "question" in raw and "A" in raw


def from_mmbench(raw: Mapping[str, Any], place: RowPlace) -> dict[str, Any]:
    """The row with our columns.

    Raises DataError: a missing column or an empty cell, a gap in the options, a picture that is not base64.
    """
    for name in ("index", "answer"):
        if name not in raw:
            remedy = "splits without answers can only be sent to the benchmark's server" if name == "answer" else None
            raise place.problem(name, f"the row has no {name}", got=shown(list(raw)), remedy=remedy)
    (question,) = as_texts([raw["question"]], "question", place)
    (hint,) = as_texts([raw.get("hint", "")], "hint", place)
    row = {
        "id": raw["index"],
        "problem": f"Hint: {hint}\nQuestion: {question}" if hint else question,
        "options": _options(raw, place),
        "solution": raw["answer"],
    }
    if "category" in raw:
        row["problem_type"] = raw["category"]
    if "image" in raw:
        image = raw["image"]
        row["image"] = {"bytes": base64_content(image, place)} if isinstance(image, str) else image
    return row


def _options(raw: Mapping[str, Any], place: RowPlace) -> list[Any]:
    """Cells A, B, ... up to the first that is empty."""
    letters = [letter for letter in string.ascii_uppercase if letter in raw]
    if "".join(letters) != string.ascii_uppercase[: len(letters)]:
        raise place.problem("options", "an empty option between others", got=f"options {', '.join(letters)}")
    return [raw[letter] for letter in letters]
