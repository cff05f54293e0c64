"""What an accuracy reward is, and all of them by name."""

from collections.abc import Callable, Sequence
from typing import Protocol

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.rewards.counting import Counting
from megatron_moe_grpo.rewards.iou import Iou
from megatron_moe_grpo.rewards.math_answer import MathAnswer
from megatron_moe_grpo.rewards.multiple_choice import MultipleChoice
from megatron_moe_grpo.rewards.soft_multiple_choice import SoftMultipleChoice
from megatron_moe_grpo.rewards.text_match import TextMatch


class Reward(Protocol):
    """Judges one response against its row.  Finite, and no response text makes it raise."""

    def __call__(self, response: str, solution: str, options: Sequence[str]) -> float:
        """How right `response` is, 0.0 to 1.0; `solution` and `options` are those of a row without a problem."""
        ...

    def problem_with(self, solution: str, options: Sequence[str]) -> str | None:
        """Why no response to a row with this solution and these options can be judged; None if all is well."""
        ...


REWARDS: dict[str, Callable[[RewardConfig], Reward]] = {
    "multiple_choice": MultipleChoice,
    "soft_multiple_choice": SoftMultipleChoice,
    "counting": Counting,
    "math_answer": MathAnswer,
    "iou": Iou,
    "text_match": TextMatch,
}
