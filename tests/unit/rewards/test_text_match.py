import pytest

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.rewards.text_match import TextMatch


@pytest.mark.parametrize(
    ("response", "strict", "official"),
    [
        ("Exit Only", 1.0, 1.0),
        ("exit only", 1.0, 1.0),
        ("  EXIT\n only. ", 1.0, 1.0),
        ('"Exit only"', 1.0, 1.0),
        ("**Exit only**", 1.0, 1.0),
        ("\uff25\uff38\uff29\uff34 only", 1.0, 1.0),  # full-width letters
        ("<think>no entry</think><answer>exit only</answer>", 1.0, 1.0),
        ("The sign says exit only", 0.0, 1.0),
        ("exit", 0.0, 0.0),
        ("exitonly", 0.0, 0.0),
        ("exit only <answer>no entry</answer>", 0.0, 0.0),
        ("<think>exit only", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_text_match(response: str, strict: float, official: float) -> None:
    for extraction, expected in (("strict", strict), ("official", official)):
        assert TextMatch(RewardConfig(extraction=extraction))(response, "Exit only", ()) == expected


@pytest.mark.parametrize(("solution", "is_fine"), [("x", True), ("", False), (" . ", False), ('""', False)])
def test_text_match_problem_with(solution: str, is_fine: bool) -> None:
    assert (TextMatch(RewardConfig()).problem_with(solution, ()) is None) == is_fine
