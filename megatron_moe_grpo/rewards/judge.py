"""What a response earns: the accuracy reward of its question's type, plus alpha times the format reward.

OThink-MR1 Eq. 1: R = R_acc + alpha * R_format.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.rewards.answer_format import format_reward
from megatron_moe_grpo.rewards.file_function import PREFIX, FileFunction
from megatron_moe_grpo.rewards.reward import REWARDS, Reward

# Questions without options, by problem_type.  The names are OneThinker's and this repository's own data's; its other
# types (temporal grounding, tracking, segmentation, regression) have no default and need `reward.by_problem_type`.
REWARD_OF_OPEN_QUESTIONS = {
    "counting": "counting",
    "numerical": "counting",
    "geometry": "math_answer",
    "math": "math_answer",
    "spatial grounding": "iou",
    "ocr": "text_match",
    "open-ended": "text_match",
}


class Question(Protocol):
    """The part of a row that a reward needs."""

    problem_type: str
    options: Sequence[str]
    solution: str


@dataclass(frozen=True)
class Judgement:
    """What one response earned, and from what."""

    reward: float
    accuracy: float
    format: float

    @property
    def is_correct(self) -> bool:
        """At least half the credit: for rewards of 0 and 1 that is right or wrong, for boxes the usual IoU of 0.5."""
        return self.accuracy >= 0.5


class Judge:
    """Rewards by problem_type.

    A type named in `settings.by_problem_type` gets that reward.  Others: with options `multiple_choice`, or
    `soft_multiple_choice` where the solution has several letters; without, REWARD_OF_OPEN_QUESTIONS.  Case and
    underscores in a type do not matter.

    Raises:
        ConfigError: `by_problem_type` names no reward, or a user's file that cannot be used.
    """

    def __init__(self, settings: RewardConfig):
        self._format_coefficient = settings.format_coefficient
        self._rewards: dict[str, Reward] = {name: make(settings) for name, make in REWARDS.items()}
        self._name_of_type = {_plain(kind): name for kind, name in settings.by_problem_type.items()}
        for name in self._name_of_type.values():
            if name.startswith(PREFIX):
                self._rewards[name] = FileFunction(name)
            elif name not in REWARDS:
                raise _unknown_reward(name)

    def __call__(self, response: str, question: Question) -> Judgement:
        """R = R_acc + alpha * R_format.  OThink-MR1 Eq. 1.

        Args:
            response: decoded text without special tokens.
            question: one that `problem_with` has no problem with.
        """
        reward = self._reward_for(question)
        assert reward is not None, "rows are checked when they are loaded"
        accuracy = reward(response, question.solution, question.options)
        form = format_reward(response)
        return Judgement(accuracy + self._format_coefficient * form, accuracy, form)

    def problem_with(self, question: Question) -> str | None:
        """Why no response to `question` can be judged; None if all is well."""
        reward = self._reward_for(question)
        if reward is None:
            return (
                f"no reward is known for questions of type {question.problem_type!r} without options: name one in "
                f"reward.by_problem_type ({', '.join(sorted(REWARDS))}, or python FILE:FUNCTION)"
            )
        return reward.problem_with(question.solution, question.options)

    def _reward_for(self, question: Question) -> Reward | None:
        name = self._name_of_type.get(_plain(question.problem_type)) or _default_name(question)
        return self._rewards.get(name) if name else None


def _default_name(question: Question) -> str | None:
    if not question.options:
        return REWARD_OF_OPEN_QUESTIONS.get(_plain(question.problem_type))
    return "multiple_choice" if len(question.solution.strip()) <= 1 else "soft_multiple_choice"


def _plain(problem_type: str) -> str:
    return " ".join(problem_type.casefold().replace("_", " ").split())


def _unknown_reward(name: str) -> ConfigError:
    nearest = difflib.get_close_matches(name, REWARDS, n=1)
    return ConfigError(
        "reward.by_problem_type names a reward that does not exist",
        got=name,
        expected=f"{', '.join(sorted(REWARDS))}, or python FILE:FUNCTION",
        remedy=f"did you mean {nearest[0]}?" if nearest else None,
    )
