import time

import pytest

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.rewards.multiple_choice import MultipleChoice, extract_letter, multiple_choice_reward

OPTIONS = ("A. 3", "B. 4", "C. a cat", "D. I")
TEN_OPTIONS = tuple(f"{letter}. {letter.lower()}" for letter in "ABCDEFGHIJ")


@pytest.mark.parametrize(
    "response",
    [
        "B",
        " B\n",
        "B.",
        "B:",
        "(B)",
        "(B).",
        "B)",
        "B. 4",
        "B) 4",
        "(B) 4",
        "<answer>B</answer>",
        "<answer> (B) </answer>",
        "<answer>B. 4</answer>",
        "<answer>The answer is B.</answer>",
        "The picture shows A. <answer>B</answer>",  # outside the tags nothing counts
        "<think>A? No, C.</think><answer>B</answer>",
        "<think>A or B</think>\nB",
        "<think>say <answer>A</answer></think>B",
        "The answer is B",
        "The answer is B.",
        "the answer is (B)",
        "Answer: B",
        "answer B",
        "Option B",
        "My choice is B!",
        "So, the correct answer is option B.",
        "I think the answer is B",
        "I believe that the right option is B.",
        "There are four of them. The answer is B.",
        "There are four.\nAnswer: B",
        "A7 is a road. The answer is B.",
        "B is right. The answer is B.",
    ],
)
def test_extract_letter_reads_one_clear_letter(response: str) -> None:
    assert extract_letter(response, OPTIONS) == "B"
    assert multiple_choice_reward(response, "B", OPTIONS) == 1.0
    assert multiple_choice_reward(response, "A", OPTIONS) == 0.0


@pytest.mark.parametrize(
    "response",
    [
        "",
        " ",
        ".",
        "()",
        "?",
        "4",
        "a cat",  # an option's text without its letter
        "b",
        "b.",
        "(b)",
        "the answer is b",  # lower case: "a" is an article
        "E",
        "E.",
        "The answer is E",
        "<answer>Z</answer>",  # beyond the options
        "A or B",
        "A, B",
        "A and B",
        "AB",
        "A B",
        "A/B",
        "A.B",
        "A\nB",
        "(A)(B)",
        "B, not A",
        "ABCD",
        "BB",
        "B B",
        "The answer is A or B",
        "The answer is A. The answer is B.",
        "A. The answer is B.",
        "It is A. No: the answer is B",
        "A cat sits there. The answer is B.",  # strict: the article may be the letter
        "The answer is not B",
        "It is not B",
        "Not B",
        "The answer is not A but B",
        "The answer isn't B",
        "B. 3",
        "B. four",
        "B 4",
        "B. 4 C. a cat",  # letter and text disagree, or more than one option
        "Because",
        "Correct",
        "Best: cat",
        "I",
        "Is it B?",
        "B?",
        "B!?",
        "I think B",
        "B is the answer",
        "B because of A",
        "<answer>A</answer><answer>B</answer>",
        "<answer>B</answer><answer>B</answer>",
        "<answer>B",
        "B</answer>",
        "</answer>B<answer>",
        "<answer><answer>B</answer></answer>",
        "<answer></answer>",
        "<ANSWER>B</ANSWER>",
        "</answer><answer>B</answer>",
        "<answer>B</answer></answer>",
        "B <answer></answer>",
        "hm</answer>\nThe answer is B",
        "<think>There are four.\nThe answer is B",  # cut off before it was said
        "<think>B",
        "B</think>",
        "<think>x</think><think>y</think>B",
        "B<think>A</think>",
        "\\boxed{B}",
        "**B**",
        "`B`",
        '"B"',
        "B<|im_end|>",
        "\uff22",
        "\u0412",
        "\u0392",
        "B\0",
        "B\u200b",
        '{"answer": "B"}',
    ],
)
def test_extract_letter_refuses_the_unclear(response: str) -> None:
    assert extract_letter(response, OPTIONS) is None
    assert [multiple_choice_reward(response, letter, OPTIONS) for letter in "ABCD"] == [0.0] * 4


@pytest.mark.parametrize(
    ("response", "options", "expected"),
    [
        ("E", TEN_OPTIONS, "E"),
        ("I think the answer is B", TEN_OPTIONS, None),  # "I" is an option here
        ("C. a cat", OPTIONS, "C"),
        ("I. The answer is B.", OPTIONS, "B"),  # no option I
        ("C", OPTIONS[:2], None),
    ],
)
def test_extract_letter_depends_on_the_options(response: str, options: tuple[str, ...], expected: str | None) -> None:
    assert extract_letter(response, options) == expected


def test_multiple_choice_reward_of_a_fixed_letter_is_its_share_of_the_solutions() -> None:
    # Ten rows, three of them B: always answering B earns 0.3; naming all letters earns nothing.
    solutions = "BABCDABDAC"
    for response, expected in (("B", 0.3), ("A B C D", 0.0)):
        rewards = [multiple_choice_reward(response, solution, OPTIONS) for solution in solutions]
        assert sum(rewards) / len(rewards) == pytest.approx(expected)
        assert set(rewards) <= {0.0, 1.0}


@pytest.mark.parametrize(
    "piece",
    ["<answer>", "</answer>", "<think>", "A ", "the answer is ", "so, ", "(", "B.\n", " ", "\n", "<think></think>"],
)
def test_extract_letter_is_fast_on_long_nonsense(piece: str) -> None:
    start_s = time.perf_counter()
    extract_letter(piece * (200_000 // len(piece)), OPTIONS)
    assert time.perf_counter() - start_s < 1.0  # measured at most 0.014 s; quadratic reading takes minutes


def test_multiple_choice_reward_refuses_a_solution_that_no_row_can_have() -> None:
    with pytest.raises(AssertionError):
        multiple_choice_reward("B", "E", OPTIONS)


@pytest.mark.parametrize(
    ("extraction", "response", "expected"),
    [("strict", "**B**", 0.0), ("official", "**B**", 1.0), ("strict", "B", 1.0), ("official", "A", 0.0)],
)
def test_multiple_choice_reads_as_the_settings_say(extraction: str, response: str, expected: float) -> None:
    assert MultipleChoice(RewardConfig(extraction=extraction))(response, "B", OPTIONS) == expected


@pytest.mark.parametrize(
    ("solution", "options", "is_fine"),
    [("B", OPTIONS, True), ("E", OPTIONS, False), ("b", OPTIONS, False), ("AB", OPTIONS, False), ("", OPTIONS, False),
     ("4", OPTIONS, False), ("A", (), False)],
)  # fmt: skip
def test_multiple_choice_problem_with_a_solution(solution: str, options: tuple[str, ...], is_fine: bool) -> None:
    assert (MultipleChoice(RewardConfig()).problem_with(solution, options) is None) == is_fine
