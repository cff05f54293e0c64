import time

import pytest

from megatron_moe_grpo.rewards.multiple_choice import extract_letter
from megatron_moe_grpo.rewards.official_choice import infer_letter

OPTIONS = ("A. three", "B. four", "C. a cat", "D. ")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B. four", "B"),
        ("b", "B"),
        ("(b).", "B"),
        ("**B**", "B"),
        ("`B`", "B"),
        ('"B"', "B"),
        ("\\boxed{B}", "B"),
        ("$\\boxed{B}$", "B"),
        ("答案是：B。", "B"),
        ("答案B", None),  # glued to a Chinese word
        ("选项（B）", "B"),
        ("B、", "B"),
        ("The answer is B", "B"),
        ("The answer is **B**, because A is too few and C is an animal.", "B"),
        ("The correct answer is (B) since A and C are wrong", "B"),
        ("The answer is A. No, the answer is B", "B"),
        ("I think B", "B"),
        ("It is not B", "B"),  # lenient: what strict is for
        ("four", "B"),
        ("I count four.", "B"),
        ("FOUR!", "B"),
        ("B? no it is so so three", "A"),  # the letter is too far from the end
        ("three or four", None),  # two options' texts
        ("A or B", "B"),  # the last letter
        ("A, then B", "B"),
        ("B and then A", "A"),
        ("A cat sits on the mat and looks at us, so B", "B"),
        ("A cat sits on the mat and looks at us for a long time", "A"),  # the article: known weakness
        ("Because", None),
        ("Correct", None),
        ("AB", None),
        ("E", None),
        ("The answer is E", None),
        ("", None),
        (" . ", None),
        ("B is what I see here when I look at it", "B"),
        ("\uff22", None),
        ("\u0412", None),
        ("-1", None),
    ],
)
def test_infer_letter(answer: str, expected: str | None) -> None:
    assert infer_letter(answer, OPTIONS) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>A</think><answer>B</answer>", "B"),
        ("<think>A</think>B", "B"),
        ("A</think>B", "B"),
        ("A <answer>B</answer> C", "B"),
        ("<answer>A</answer><answer>B</answer>", "B"),
        ("<answer>B", "B"),  # cut off
        ("A <answer></answer>", None),  # outside the tags nothing counts
        ("A <answer>hm</answer> A", None),
        ("A</answer>", None),
        ("<think>B", None),
        ("<think>It is B. <answer>A</answer>", "A"),
    ],
)
def test_extract_letter_official_reads_inside_the_last_answer_only(response: str, expected: str | None) -> None:
    assert extract_letter(response, OPTIONS, "official") == expected


@pytest.mark.parametrize("piece", ["answer is ", "answer is  ( ", "A ", " ", "(", "\n", "b", "<answer>", "</think>"])
def test_infer_letter_is_fast_on_long_nonsense(piece: str) -> None:
    start_s = time.perf_counter()
    extract_letter(piece * (200_000 // len(piece)), OPTIONS, "official")
    assert time.perf_counter() - start_s < 1.0  # measured at most 0.06 s
