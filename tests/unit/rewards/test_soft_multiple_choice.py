import time

import pytest

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.rewards.soft_multiple_choice import SoftMultipleChoice, extract_letters, jaccard_index

OPTIONS = ("A. 3", "B. 4", "C. a cat", "D. I")


def test_jaccard_index_by_hand() -> None:
    assert jaccard_index(frozenset("AC"), frozenset("ACD")) == pytest.approx(2 / 3)
    assert jaccard_index(frozenset("AB"), frozenset("AC")) == pytest.approx(1 / 3)
    assert jaccard_index(frozenset("ABCD"), frozenset("A")) == 0.25  # naming all earns the share of right ones
    assert jaccard_index(frozenset(), frozenset("A")) == 0.0


@pytest.mark.parametrize(
    ("text", "strict", "official"),
    [
        ("A, C", "AC", "AC"),
        ("A,C", "AC", "AC"),
        ("C A", "AC", "AC"),
        ("AC", "AC", "AC"),
        ("A and C", "AC", "AC"),
        ("A, C, and D", "ACD", "ACD"),
        ("(A) (C)", "AC", "AC"),
        ("A; C/D & B", "ABCD", "ABCD"),
        ("A、C", "AC", "AC"),
        ("A，C", "AC", "AC"),
        ("C", "C", "C"),
        ("C.", "C", "C"),
        ("A or C", "", "AC"),
        ("A, A", "", "A"),
        ("AA", "", "A"),
        ("a, c", "", ""),
        ("A, E", "", "A"),
        ("AE", "", ""),
        ("not A", "", "A"),
        ("**A**, **C**", "", "AC"),
        ("\\boxed{AC}", "", "AC"),
        ("The answers are A and C.", "", "AC"),
        ("", "", ""),
        (",", "", ""),
        ("A,,C", "", "AC"),
        ("CAT", "", ""),
    ],
)
def test_extract_letters(text: str, strict: str, official: str) -> None:
    for response in (text, f"<think>B, D</think><answer>{text}</answer>", f"B <answer> {text} </answer> D"):
        assert extract_letters(response, OPTIONS, "strict") == frozenset(strict)
        assert extract_letters(response, OPTIONS, "official") == frozenset(official)


def test_soft_multiple_choice_pays_the_jaccard_index() -> None:
    reward = SoftMultipleChoice(RewardConfig())
    assert reward("A, C", "ACD", OPTIONS) == pytest.approx(2 / 3)
    assert reward("A, C, D", "A, C, D", OPTIONS) == 1.0
    assert reward("B", "ACD", OPTIONS) == 0.0


@pytest.mark.parametrize(
    ("solution", "is_fine"), [("AC", True), ("A, C", True), ("C", True), ("AE", False), ("AA", False), ("", False)]
)
def test_soft_multiple_choice_problem_with(solution: str, is_fine: bool) -> None:
    reward = SoftMultipleChoice(RewardConfig())
    assert (reward.problem_with(solution, OPTIONS) is None) == is_fine
    assert reward.problem_with(solution, ()) is not None


@pytest.mark.parametrize("piece", ["A ", "A, ", " ", ",", "(", "and "])
def test_extract_letters_is_fast_on_long_nonsense(piece: str) -> None:
    start_s = time.perf_counter()
    for extraction in ("strict", "official"):
        extract_letters("A" + piece * (200_000 // len(piece)) + "B", OPTIONS, extraction)
    assert time.perf_counter() - start_s < 1.0  # measured at most 0.09 s
