"""Accuracy of a count or another number said in words: "3", "three objects", "There are 3 objects."  OThink-MR1 3.1."""

import re
from collections.abc import Sequence
from fractions import Fraction

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.rewards.answer_format import Extraction, answer_of
from megatron_moe_grpo.rewards.math_process import MathProcess
from megatron_moe_grpo.rewards.number_answer import MINUS_SIGNS, Number, same_number

MAX_CHARS = 400
FIGURES = re.compile(r"(?<![\w.,-])(-?)((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,15})(?:\.[0-9]{1,15})?)(?!\w|[.,][0-9])")
ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
VALUE_OF_WORD = {word: value for value, word in enumerate(ONES)} | {
    word: 10 * tens for tens, word in enumerate(TENS, start=2)
}
WORDS = re.compile(
    rf"(?<![\w-])(?:(?P<tens>{'|'.join(TENS)})(?:[- ](?P<ones>{'|'.join(ONES[1:10])}))?|(?P<small>{'|'.join(ONES)})"
    r"|(?P<nothing>none|no(?= [a-z])))(?![\w-])"
)
# Words that make another number, or no exact one, of the number beside them.
QUALIFIERS = re.compile(
    r"(?<![\w-])(?:dozens?|hundreds?|thousands?|millions?|pairs?|couple|half|not|\w+n't|or|least|most|more|fewer|less|than"
    r"|about|approximately|roughly|nearly|almost|maybe)(?![\w-])"
)


class Counting:
    """1.0 if the answer says the number of the solution, else 0.0.

    `strict`: `said_number` of the answer and of the solution are the same (`same_number`: a whole number exactly, one
    with a decimal point within `settings.number_tolerance`).
    `official`: as R1-V's reward for CLEVR (src/r1-v/src/open_r1/grpo.py), Math-Verify's reading of the answer, which is
    its last number, or equal texts; it knows no number words.
    """

    def __init__(self, settings: RewardConfig):
        self._extraction: Extraction = settings.extraction
        self._tolerance = settings.number_tolerance
        self._math = MathProcess(settings.math_timeout_s)

    def __call__(self, response: str, solution: str, options: Sequence[str]) -> float:
        answer = answer_of(response, self._extraction)
        if answer is None:
            return 0.0
        if self._extraction == "official":
            return float(self._math.is_equal_anywhere(answer, solution))
        right, said = said_number(solution), said_number(answer)
        assert right is not None, "rows are checked when they are loaded"
        return float(said is not None and same_number(said, right, self._tolerance))

    def problem_with(self, solution: str, options: Sequence[str]) -> str | None:
        if said_number(solution) is None:
            return f"the solution {solution[:40]!r} does not say one number"
        return None


def said_number(text: str) -> Number | None:
    """The one number that `text` says, in figures or words, or None.

    Read: figures with a sign, thousands separators or decimals; the words zero to ninety-nine, with a hyphen or a
    space; `none` and `no objects` as 0.  Refused: two numbers, even equal ones; figures glued to letters (`3D`, `2nd`);
    any word of QUALIFIERS ("a dozen", "two hundred", "at least 3", "not 3", "3 or so").  Units and other words are
    passed over.
    """
    text = text.translate(MINUS_SIGNS).casefold()
    if len(text) > MAX_CHARS or QUALIFIERS.search(text):
        return None
    figures, words = list(FIGURES.finditer(text)), list(WORDS.finditer(text))
    if len(figures) + len(words) != 1 or any(char.isdigit() for char in FIGURES.sub("", text)):
        return None
    if words:
        return Number(Fraction(_value_of_words(words[0])), is_decimal=False)
    sign, digits = figures[0].groups()
    return Number(Fraction(sign + digits.replace(",", "")), is_decimal="." in digits)


def _value_of_words(match: re.Match[str]) -> int:
    if match["nothing"]:
        return 0
    if match["small"]:
        return VALUE_OF_WORD[match["small"]]
    return VALUE_OF_WORD[match["tens"]] + (VALUE_OF_WORD[match["ones"]] if match["ones"] else 0)
