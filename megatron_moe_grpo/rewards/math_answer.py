"""Accuracy of a number or a formula: geometry, algebra.  OThink-MR1 3.1 ("numerical or symbolic correctness")."""

from collections.abc import Sequence

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.rewards.answer_format import Extraction, answer_of
from megatron_moe_grpo.rewards.math_process import MathProcess
from megatron_moe_grpo.rewards.number_answer import MINUS_SIGNS, read_number, same_number, unwrap

MAX_CHARS = 200


class MathAnswer:
    """1.0 if the answer equals the solution, else 0.0.

    `strict`: the answer is one number or one formula, from end to end.  Two numbers are compared by `same_number`;
    anything else by Math-Verify within `settings.math_timeout_s`, and beside a number written as a decimal with
    `settings.number_tolerance` (1.41 for \\sqrt{2}).
    `official`: as R1-V's reward for GEOQA, Math-Verify's reading of the answer, its last formula, or equal texts.
    """

    def __init__(self, settings: RewardConfig):
        self._extraction: Extraction = settings.extraction
        self._tolerance = settings.number_tolerance
        self._math = MathProcess(settings.math_timeout_s)

    def __call__(self, response: str, solution: str, options: Sequence[str]) -> float:
        answer = answer_of(response, self._extraction)
        if not answer:
            return 0.0
        if self._extraction == "official":
            return float(self._math.is_equal_anywhere(answer, solution))
        return float(self._is_equal(answer, solution))

    def problem_with(self, solution: str, options: Sequence[str]) -> str | None:
        """`strict` wants a solution that can be parsed; `official` still compares texts where it cannot."""
        formula = _formula(solution)
        if not formula:
            return "the solution is empty"
        if self._extraction == "official" or read_number(solution) or self._math.is_equal(formula, formula):
            return None
        return f"the solution {solution[:60]!r} is neither a number nor a formula"

    def _is_equal(self, answer: str, solution: str) -> bool:
        given, right = read_number(answer), read_number(solution)
        if given and right:
            return same_number(given, right, self._tolerance)
        formula, right_formula = _formula(answer), _formula(solution)
        if not formula or "$" in formula or len(formula) > MAX_CHARS:
            return False
        is_rounded = any(number is not None and number.is_decimal for number in (given, right))
        return formula == right_formula or self._math.is_equal(
            formula, right_formula, self._tolerance if is_rounded else 0.0
        )


def _formula(text: str) -> str:
    return unwrap(text).translate(MINUS_SIGNS)
