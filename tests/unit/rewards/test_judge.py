from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.rewards.judge import REWARD_OF_OPEN_QUESTIONS, Judge, Judgement
from megatron_moe_grpo.rewards.reward import REWARDS

OPTIONS = ("A. 3", "B. 4")


@dataclass(frozen=True)
class OneQuestion:
    problem_type: str
    solution: str
    options: tuple[str, ...] = ()


CHOICE = OneQuestion("multiple choice", "B", OPTIONS)


@pytest.mark.parametrize(
    ("response", "alpha", "expected"),
    [
        ("<think>4</think><answer>B</answer>", 1.0, Judgement(2.0, 1.0, 1.0)),
        ("<think>4</think><answer>B</answer>", 0.25, Judgement(1.25, 1.0, 1.0)),
        ("<think>4</think><answer>B</answer>", 0.0, Judgement(1.0, 1.0, 1.0)),
        ("<think>4</think><answer>A</answer>", 0.5, Judgement(0.5, 0.0, 1.0)),
        ("B", 1.0, Judgement(1.0, 1.0, 0.0)),
        ("A", 1.0, Judgement(0.0, 0.0, 0.0)),
    ],
)
def test_judge_adds_alpha_times_format(response: str, alpha: float, expected: Judgement) -> None:
    assert Judge(RewardConfig(format_coefficient=alpha))(response, CHOICE) == expected


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        (CHOICE, "B", "A"),
        (OneQuestion("anything", "B", OPTIONS), "B", "A"),
        (OneQuestion("counting", "B", OPTIONS), "B", "4"),  # options decide first
        (OneQuestion("", "AB", OPTIONS), "A, B", "C"),
        (OneQuestion("counting", "3"), "three", "four"),
        (OneQuestion("numerical", "2.5"), "2.51", "2.6"),
        (OneQuestion("geometry", "140°"), "140", "130"),
        (OneQuestion("math", "1/2"), "\\frac{1}{2}", "1/3"),
        (OneQuestion("spatial grounding", "[0,0,2,2]"), "[0, 0, 2, 2]", "[5,5,6,6]"),
        (OneQuestion("Spatial_Grounding", "[0,0,2,2]"), "[0, 0, 2, 2]", "[5,5,6,6]"),
        (OneQuestion("OCR", "Exit"), "exit", "entry"),
        (OneQuestion("open-ended", "Exit"), "exit", "entry"),
    ],
)
def test_judge_rewards_by_default(question: OneQuestion, right: str, wrong: str) -> None:
    judge = Judge(RewardConfig())
    assert judge.problem_with(question) is None
    for response, accuracy in ((right, 1.0), (wrong, 0.0)):
        assert judge(response, question).accuracy == accuracy
        tagged = judge(f"<think>{wrong}</think><answer>{response}</answer>", question)
        assert (tagged.accuracy, tagged.format, tagged.is_correct) == (accuracy, 1.0, accuracy == 1.0)


def test_judge_pays_a_box_by_degrees() -> None:
    judgement = Judge(RewardConfig())("[0,0,2,1]", OneQuestion("spatial grounding", "[0,0,2,2]"))
    assert judgement == Judgement(0.5, 0.5, 0.0) and judgement.is_correct


def test_judge_follows_by_problem_type(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def f(response, solution, options):\n    return 7.0 if response.startswith('<think>') else 0\n")
    settings = RewardConfig(by_problem_type={"counting": "math_answer", "my type": f"python {path}:f"})
    judge = Judge(settings)
    assert judge("three", OneQuestion("counting", "3")).accuracy == 0.0
    assert judge("three", OneQuestion("numerical", "3")).accuracy == 1.0  # others keep their default
    # The whole response goes to a user's function, and options do not overrule the setting.
    assert judge("<think>", OneQuestion("My Type", "B", OPTIONS)).accuracy == 7.0
    assert judge.problem_with(OneQuestion("my type", "")) is None


def test_judge_passes_the_settings_on() -> None:
    assert Judge(RewardConfig(extraction="official"))("**B**", CHOICE).accuracy == 1.0
    assert Judge(RewardConfig(number_tolerance=0.5))("2", OneQuestion("counting", "2.5")).accuracy == 1.0


@pytest.mark.parametrize(
    ("question", "match"),
    [
        (OneQuestion("tracking", "x"), "no reward is known.*'tracking'.*reward.by_problem_type"),
        (OneQuestion("multiple choice", "B"), "no reward is known"),
        (OneQuestion("multiple choice", "E", OPTIONS), "not the letter"),
        (OneQuestion("multiple choice", "", OPTIONS), "not the letter"),
        (OneQuestion("counting", "a few"), "does not say one number"),
        (OneQuestion("math", ""), "empty"),
        (OneQuestion("spatial grounding", "left"), "no box"),
        (OneQuestion("ocr", " "), "no text"),
    ],
)
def test_judge_problem_with_names_the_reason(question: OneQuestion, match: str) -> None:
    problem = Judge(RewardConfig()).problem_with(question)
    assert problem is not None
    with pytest.raises(ValueError, match=match):
        raise ValueError(problem)


def test_judge_refuses_an_unknown_reward() -> None:
    with pytest.raises(ConfigError, match="did you mean counting"):
        Judge(RewardConfig(by_problem_type={"x": "countin"}))
    with pytest.raises(ConfigError, match="no Python file"):
        Judge(RewardConfig(by_problem_type={"x": "python missing.py:f"}))


def test_default_rewards_exist() -> None:
    assert set(REWARD_OF_OPEN_QUESTIONS.values()) <= set(REWARDS)
