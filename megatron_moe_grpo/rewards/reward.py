"""What a reward is, and all of them by name."""

from collections.abc import Sequence
from typing import Protocol

from megatron_moe_grpo.rewards.multiple_choice import multiple_choice_reward


class Reward(Protocol):
    """Judges one response against its row.  Pure, finite, and never raises on any response text."""

    def __call__(self, response: str, row_solution: str, options: Sequence[str]) -> float:
        """The reward of `response`; `row_solution` and `options` are those of the checked row."""
        ...


REWARDS: dict[str, Reward] = {"multiple_choice": multiple_choice_reward}
