from fractions import Fraction

import pytest

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.rewards.counting import Counting, said_number

TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        (" 3.\n", 3),
        ("3 objects", 3),
        ("There are 3 objects.", 3),
        ("three", 3),
        ("Three objects", 3),
        ("THREE!", 3),
        ("zero", 0),
        ("0", 0),
        ("none", 0),
        ("no objects", 0),
        ("There are no red cubes.", 0),
        ("ten", 10),
        ("twelve spheres", 12),
        ("twenty", 20),
        ("twenty-one", 21),
        ("twenty one", 21),
        ("ninety-nine", 99),
        ("**3**", 3),
        ("\\boxed{3}", 3),
        ("$3$", 3),
        ("3，", 3),
        ("共有 3 个", 3),
        ("-3", -3),
        ("\u22123", -3),
        ("1,234", 1234),
        ("12,345,678 ants", 12345678),
        ("3.0", 3),
        ("3.5", Fraction(7, 2)),
        ("007", 7),
    ],
)
def test_said_number_reads(text: str, value: int | Fraction) -> None:
    number = said_number(text)
    assert number is not None and number.value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "many",
        "no",  # may answer another question
        "3 or 4",
        "3, 4",
        "3 4",
        "2-3",
        "3 to 5",
        "3/4",
        "three or four",
        "3 (three)",  # two numbers, even equal ones
        "3. There are 3.",
        "no, three and two",
        "a dozen",
        "two dozen",
        "two hundred",
        "3 thousand",
        "three pairs",
        "at least 3",
        "more than 3",
        "about 3",
        "not 3",
        "There aren't 3",
        "3 or so",
        "3D",
        "B3",
        "2nd",
        "A-3",
        "1,23",
        "1.2.3",
        "3e0",
        "\\frac{3}{1}",
        "\uff13",  # full-width
        "\u0663",  # Arabic
        "3\u00b2",
        "\u2462",  # circled
        "1234567890123456",
        "threes",
        "twenty-ten",
        "thirty-three-quarters",
        "no one is three",
        "3 " + "x" * 400,
    ],
)
def test_said_number_refuses(text: str) -> None:
    assert said_number(text) is None


def test_said_number_knows_all_words_below_a_hundred() -> None:
    for tens, word in enumerate(TENS, start=2):
        for ones, small in enumerate(ONES, start=1):
            for text in (f"{word}-{small}", f"{word} {small}"):
                assert said_number(text).value == 10 * tens + ones


@pytest.mark.parametrize(
    ("response", "solution", "strict", "official"),
    [
        ("3", "3", 1.0, 1.0),
        ("<think>4</think><answer>3</answer>", "3", 1.0, 1.0),
        ("<think>3</think><answer>4</answer>", "3", 0.0, 0.0),
        ("3 <answer>many</answer>", "3", 0.0, 0.0),
        ("<answer>three</answer>", "3", 1.0, 0.0),
        ("<answer>3 objects</answer>", "3", 1.0, 1.0),
        ("<answer>3.0</answer>", "3", 1.0, 1.0),
        ("<answer>3.01</answer>", "3", 0.0, 0.0),
        ("<answer>2 or 3</answer>", "3", 0.0, 1.0),  # the last number
        ("<answer>1 2 3 4 5</answer>", "3", 0.0, 0.0),
        ("<answer>$\\boxed{3}$</answer>", "3", 1.0, 1.0),
        ("<answer>3</answer>", "three", 1.0, 0.0),
        ("<answer>2.51</answer>", "2.5", 1.0, 0.0),
        ("<answer>2.6</answer>", "2.5", 0.0, 0.0),
        ("<answer></answer>", "3", 0.0, 0.0),
    ],
)
def test_counting(response: str, solution: str, strict: float, official: float) -> None:
    assert Counting(RewardConfig())(response, solution, ()) == strict
    assert OFFICIAL(response, solution, ()) == official


OFFICIAL = Counting(RewardConfig(extraction="official"))


@pytest.mark.parametrize(("solution", "is_fine"), [("3", True), ("three", True), ("3 or 4", False), ("", False)])
def test_counting_problem_with(solution: str, is_fine: bool) -> None:
    assert (Counting(RewardConfig()).problem_with(solution, ()) is None) == is_fine
