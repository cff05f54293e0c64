import pytest

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.rewards.math_answer import MathAnswer

STRICT = MathAnswer(RewardConfig(math_timeout_s=20.0))
OFFICIAL = MathAnswer(RewardConfig(math_timeout_s=20.0, extraction="official"))


@pytest.mark.parametrize(
    ("answer", "solution", "expected"),
    [
        ("140", "140°", 1.0),
        ("140^\\circ", "140°", 1.0),
        ("140 degrees", "140", 1.0),
        ("$\\boxed{140^{\\circ}}$", "140°", 1.0),
        ("141", "140°", 0.0),
        ("-140", "140", 0.0),
        ("1,400", "1400", 1.0),
        ("1.4e3", "1400", 1.0),
        ("\\frac{1}{2}", "0.5", 1.0),
        ("1/2", "\\frac{2}{4}", 1.0),
        ("2\\sqrt{3}", "\\sqrt{12}", 1.0),
        ("2\\sqrt{3}", "\\sqrt{11}", 0.0),
        ("\\sqrt{3}\\times 2", "2\\sqrt{3}", 1.0),
        ("3.46", "2\\sqrt{3}", 1.0),  # a rounded decimal
        ("3.4", "2\\sqrt{3}", 0.0),
        ("2\\sqrt{3}", "3.464", 1.0),
        ("3", "2\\sqrt{3}", 0.0),
        ("\\frac{52}{15}", "2\\sqrt{3}", 0.0),  # 0.07 % off, but no decimal
        ("\\frac{\\pi}{3}", "\\pi/3", 1.0),
        ("3.14", "\\pi", 1.0),
        ("(x+1)^2", "x^2+2x+1", 1.0),
        ("(x+1)^2", "x^2+2x+2", 0.0),
        ("x = 2\\sqrt{3}", "2\\sqrt{3}", 1.0),
        ("The answer is $2\\sqrt{3}$.", "2\\sqrt{3}", 1.0),
        ("\u22122\\sqrt{3}", "-2\\sqrt{3}", 1.0),
        ("\\{1, 2\\}", "\\{2, 1\\}", 1.0),
        ("(1, 2)", "(2, 1)", 0.0),
        ("2\\sqrt{3} or 5", "5", 0.0),
        ("2\\sqrt{3}, 5", "5", 0.0),
        ("5, 7", "5", 0.0),
        ("I think it is 5", "5", 0.0),
        ("$5$ or $7$", "5", 0.0),
        ("$7$ $2\\sqrt{3}$", "\\sqrt{12}", 0.0),
        ("1$ $2\\sqrt{3}", "\\sqrt{12}", 0.0),
        ("1$$2\\sqrt{3}", "\\sqrt{12}", 0.0),
        ("x", "5", 0.0),
        ("5x", "5", 0.0),
        ("\\frac{0}{0}", "5", 0.0),
        ("1.5", "\\infty", 0.0),
        ("\\infty", "1.5", 0.0),
        ("\\text{nan}", "1.5", 0.0),
        ("\\frac{", "5", 0.0),
        ("}{", "5", 0.0),
        ("", "5", 0.0),
    ],
)
def test_math_answer_strict(answer: str, solution: str, expected: float) -> None:
    assert STRICT(f"<think>{solution}</think> <answer> {answer} </answer>", solution, ()) == expected


@pytest.mark.parametrize(
    ("response", "solution", "expected"),
    [
        ("<answer>140</answer>", "140°", 1.0),
        ("<answer>so the angle is 140°</answer>", "140°", 1.0),
        ("<answer>The final answer is $\\boxed{2\\sqrt{3}}$ cm</answer>", "$\\sqrt{12}$", 1.0),
        ("It is 3 + 2 = 5", "5", 1.0),
        ("140 <answer>none</answer>", "140", 0.0),
        ("<think>140</think><answer>139</answer>", "140", 0.0),
        ("<answer>not a formula</answer>", "not a formula", 1.0),  # equal texts
        ("", "5", 0.0),
    ],
)
def test_math_answer_official(response: str, solution: str, expected: float) -> None:
    assert OFFICIAL(response, solution, ()) == expected


@pytest.mark.parametrize(
    ("solution", "is_fine"),
    [
        ("140°", True),
        ("2\\sqrt{3}", True),
        ("\\frac{x}{2}", True),
        ("", False),
        ("$$", False),
        ("\\frac{", False),
        ("}{", False),
    ],
)
def test_math_answer_problem_with(solution: str, is_fine: bool) -> None:
    assert (STRICT.problem_with(solution, ()) is None) == is_fine
