"""No response text makes a reward raise, or pay for what stands outside <answer>."""

import math
import random
from functools import cache

import pytest

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.rewards.answer_format import format_reward
from megatron_moe_grpo.rewards.reward import REWARDS, Reward

OPTIONS = ("A. 3", "B. four", "C. [1, 2, 3, 4]", "D. 140°")
SOLUTIONS = {
    "multiple_choice": "B",
    "soft_multiple_choice": "BD",
    "counting": "3",
    "math_answer": "2\\sqrt{3}",
    "iou": "[1, 2, 3, 4]",
    "text_match": "four",
}
PIECES = [
    *SOLUTIONS.values(), "<think>", "</think>", "<answer>", "</answer>", "<ANSWER>", "A", "b", "(", ")",
    "[", "]", "{", "}", "$", "\\", "\\frac",
    "\\boxed{", "\\text{", "\\(", "^", "_", "**", "9", "0", "1e9", "-", "\u2212", "/", "%", "°", "^\\circ", ",",
    ".", "=", "!", " ", "\n", "\t", "\0",
    "the answer is ", "three", "twenty-", "no ", "or", "not", "x", "\\sqrt", "\\infty", "nan", "。", "，", "\uff22",
    "\u0663", "\ud800", "\U0001f600",
    "\u202e", "e\u0301", "cm", "\\,", "'", '"', "`", "<|im_end|>", '{"boxes":', "%s", "\\N", "(?P<x>",
]  # fmt: skip


def random_texts(num_texts: int, seed: int) -> list[str]:
    source = random.Random(seed)
    texts = ["".join(source.choices(PIECES, k=source.randint(0, 12))) for _ in range(num_texts)]
    return texts + ["".join(chr(source.randrange(1, 0x2FFF)) for _ in range(40)) for _ in range(num_texts // 10)]


@cache  # one process for formulas a reward, not one a test
def made(name: str, extraction: str) -> Reward:
    return REWARDS[name](RewardConfig(extraction=extraction, math_timeout_s=0.3))


@pytest.mark.parametrize("extraction", ["strict", "official"])
@pytest.mark.parametrize("name", sorted(REWARDS))
def test_rewards_judge_any_text(name: str, extraction: str) -> None:
    reward, solution = made(name, extraction), SOLUTIONS[name]
    assert reward.problem_with(solution, OPTIONS) is None
    # Formulas go through a process: fewer of them, with a short limit, since a late answer is a wrong one.
    uses_process = name == "math_answer" or (name, extraction) == ("counting", "official")
    paid = set()
    for text in random_texts(150 if uses_process else 3000, seed=7):
        value = reward(text, solution, OPTIONS)
        assert isinstance(value, float) and math.isfinite(value) and 0.0 <= value <= 1.0, text
        paid.add(value)
    assert len(paid) > 1 or uses_process, "no text was right: the pieces prove nothing"


@pytest.mark.parametrize("extraction", ["strict", "official"])
@pytest.mark.parametrize("name", sorted(REWARDS))
def test_rewards_pay_for_nothing_outside_the_answer(name: str, extraction: str) -> None:
    reward, solution = made(name, extraction), SOLUTIONS[name]
    assert reward(f"<think>?</think><answer>{solution}</answer>", solution, OPTIONS) == 1.0
    for inside in ("", "?", "hm"):
        for response in (
            f"{solution} <answer>{inside}</answer>",
            f"<answer>{inside}</answer> {solution}",
            f"<think>{solution}</think> {solution} <answer>{inside}</answer>\n{solution}",
            f"<think>The answer is {solution}.</think><answer>{inside}</answer>",
            f"{solution}</answer>",
        ):
            assert reward(response, solution, OPTIONS) == 0.0, response


@pytest.mark.parametrize("extraction", ["strict", "official"])
@pytest.mark.parametrize("name", sorted(REWARDS))
def test_rewards_ignore_white_space_around_the_answer(name: str, extraction: str) -> None:
    reward, solution = made(name, extraction), SOLUTIONS[name]
    for response in (f" \n{solution}\t", f"<answer>\n {solution} \n</answer>\n", f"<think>\n</think>\n\n{solution}"):
        assert reward(response, solution, OPTIONS) == 1.0, response


def test_format_reward_of_any_text_is_0_or_1() -> None:
    assert {format_reward(text) for text in random_texts(3000, seed=3)} <= {0.0, 1.0}
