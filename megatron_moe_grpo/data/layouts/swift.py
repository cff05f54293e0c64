"""ms-swift's rows: `messages`, `images` (paths, or pictures as data:image/...;base64), `solution`.

What its GRPO reads beside them (`problem_type`, `options`, `id`, `videos`) keeps its name.
"""

from collections.abc import Mapping
from typing import Any

from megatron_moe_grpo.data.layouts.chat_turns import question_and_answer
from megatron_moe_grpo.data.row_place import RowPlace


def is_swift(raw: Mapping[str, Any]) -> bool:
    """Whether there are messages."""
    return "messages" in raw


def from_swift(raw: Mapping[str, Any], place: RowPlace) -> dict[str, Any]:
    """The row with our columns; the assistant's turn is the solution where there is no `solution`.

    Raises DataError: see `chat_turns.py`; a question or a solution given twice.
    """
    question, answer = question_and_answer(raw["messages"], "messages", place)
    given = {"problem": question} | ({} if answer is None else {"solution": answer})
    for key in given:
        if key in raw:
            raise place.problem(key, "given beside messages", remedy="keep one of the two")
    return dict(raw) | given
