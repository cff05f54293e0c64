"""verl's rows: `prompt` (one user turn), `images`, `reward_model.ground_truth`, and `data_source`, by which it judges.

`data_source` becomes the problem's type where the row names none: say in `reward.by_problem_type` how it is judged.
"""

from collections.abc import Mapping
from typing import Any

from megatron_moe_grpo.data.layouts.chat_turns import question_and_answer
from megatron_moe_grpo.data.row_place import RowPlace, shown
from megatron_moe_grpo.data.row_texts import number_as_text


def is_verl(raw: Mapping[str, Any]) -> bool:
    """Whether there are a prompt and a reward model."""
    return "prompt" in raw and "reward_model" in raw


def from_verl(raw: Mapping[str, Any], place: RowPlace) -> dict[str, Any]:
    """The row with our columns.

    Raises DataError: see `chat_turns.py`; an answer inside the prompt, a ground truth that is neither text nor number.
    """
    question, answer = question_and_answer(raw["prompt"], "prompt", place)
    if answer is not None:
        raise place.problem("prompt", "an answer inside the prompt", got=shown(answer), remedy="keep the user's turn")
    reward_model = raw["reward_model"]
    if not isinstance(reward_model, Mapping) or reward_model.get("ground_truth") is None:
        raise place.problem(
            "reward_model",
            "no ground truth",
            got=shown(reward_model),
            expected='{"style": "rule", "ground_truth": ...}',
        )
    row = {"problem": question, "solution": number_as_text(reward_model["ground_truth"], "reward_model", place)}
    if "data_source" in raw:
        row["problem_type"] = raw["data_source"]
    kept = ("id", "images", "videos", "options", "problem_type", "rationale")
    return row | {name: raw[name] for name in kept if name in raw}
