import pytest

from megatron_moe_grpo.rewards.answer_format import answer_of, format_reward


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        (" \n<think>a\n\nb</think>\n \n<answer>b</answer>\n", 1.0),
        ("<think></think><answer></answer>", 1.0),
        ("<think>1 < 2 > 0 </b></think><answer>b</answer>", 1.0),
        ("b", 0.0),
        ("", 0.0),
        ("<answer>b</answer>", 0.0),
        ("<think>a</think>b", 0.0),
        ("<think>a</think> so <answer>b</answer>", 0.0),
        ("Well. <think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer>.", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("<think>a<answer>b</answer>", 0.0),
        ("<think>a</think><think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer><answer>b</answer>", 0.0),
        ("<think>a <answer>c</answer></think><answer>b</answer>", 0.0),
        ("<think><think>a</think></think><answer>b</answer>", 0.0),
        ("<THINK>a</THINK><ANSWER>b</ANSWER>", 0.0),
    ],
)
def test_format_reward(response: str, expected: float) -> None:
    assert format_reward(response) == expected


@pytest.mark.parametrize(
    ("response", "strict", "official"),
    [
        ("b", "b", "b"),
        (" <think>a</think> b ", "b", "b"),
        ("<think>a</think><answer> b </answer>", "b", "b"),
        ("a <answer>b</answer> c", "b", "b"),
        ("<answer></answer>", "", ""),
        ("<answer>a</answer><answer>b</answer>", None, "b"),
        ("<answer>b", None, "b"),
        ("b</answer>", None, None),
        ("a</think>b", None, "b"),
        ("<think>b", None, None),
        ("<think>a</think><think>c</think>b", None, "b"),
        ("<think>say <answer>a</answer></think>b", "b", "b"),
        ("<think>hm <answer>b</answer>", "b", "b"),
    ],
)
def test_answer_of(response: str, strict: str | None, official: str | None) -> None:
    assert (answer_of(response, "strict"), answer_of(response, "official")) == (strict, official)
