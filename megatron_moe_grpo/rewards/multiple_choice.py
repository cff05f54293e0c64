"""Accuracy of a multiple-choice response.  MoE-GRPO 3.2 (reward 1 for the right option, else 0).

The paper does not say how the option is read from the text.  Choice made here, `strict`: only forms on a list are read,
and whatever could mean two options is wrong.  A lenient reader (`official`, in official_choice.py) is a reward that the
policy can learn to cheat.
"""

import re
import string
from collections.abc import Sequence

from megatron_moe_grpo.config.schema import RewardConfig
from megatron_moe_grpo.rewards.answer_format import Extraction, answer_of
from megatron_moe_grpo.rewards.official_choice import infer_letter

LETTER_ALONE = re.compile(r"\(?([A-Z])\)?[.:]?")
LETTER_AND_TEXT = re.compile(r"\(?([A-Z])[.):]\s*(.+)")
CLAIM = re.compile(
    r"(?:(?:so|thus|therefore|hence),? )?(?:i (?:think|believe)(?: that)? )?"
    r"(?:(?:the|my) )?(?:(?:final|correct|right|best) )?(?:answer|option|choice)(?: is)?:? (?:option )?"
    r"\(?((?-i:[A-Z]))\)?[.!]?",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
STANDING_LETTER = re.compile(r"(?<![A-Za-z0-9'])[A-Z](?![A-Za-z0-9'])")


class MultipleChoice:
    """`multiple_choice_reward` under the settings."""

    def __init__(self, settings: RewardConfig):
        self._extraction: Extraction = settings.extraction

    def __call__(self, response: str, solution: str, options: Sequence[str]) -> float:
        return multiple_choice_reward(response, solution, options, self._extraction)

    def problem_with(self, solution: str, options: Sequence[str]) -> str | None:
        if not options:
            return "the row has no options"
        if solution not in list(string.ascii_uppercase[: len(options)]):
            return f"the solution {solution[:40]!r} is not the letter of one of the {len(options)} options"
        return None


def multiple_choice_reward(
    response: str, row_solution: str, options: Sequence[str], extraction: Extraction = "strict"
) -> float:
    """1.0 if the response chooses the option `row_solution`, else 0.0.  MoE-GRPO 3.2.

    Args:
        response: decoded text without special tokens.
        row_solution: capital letter of the right option.
        options: ready strings "A. 3", "B. 4", ...
        extraction: how the letter is read.
    """
    assert row_solution in string.ascii_uppercase[: len(options)], "rows are checked when they are loaded"
    return float(extract_letter(response, options, extraction) == row_solution)


def extract_letter(response: str, options: Sequence[str], extraction: Extraction = "strict") -> str | None:
    """The letter of the option that `response` chooses, or None.

    `answer_of` says which part of the response counts.  In it `strict` reads, in capital letters only (a lower-case "a"
    is an article):
    1. the letter alone: `B`, `B.`, `B:`, `(B)`, `B)`;
    2. the letter with its own option's text: `B. 4`;
    3. a last sentence that claims one letter, `The answer is B.` (CLAIM is the list), while no other option's letter
       stands anywhere before it.
    A letter beyond the options is never read.  `official`: see `infer_letter`.
    """
    text = answer_of(response, extraction)
    if text is None:
        return None
    if extraction == "official":
        return infer_letter(text, options)
    letters = string.ascii_uppercase[: len(options)]
    letter = _letter_alone(text) or _letter_with_its_text(text, options) or _claimed_letter(text, letters)
    return letter if letter is not None and letter in letters else None


def _letter_alone(text: str) -> str | None:
    match = LETTER_ALONE.fullmatch(text)
    return match[1] if match else None


def _letter_with_its_text(text: str, options: Sequence[str]) -> str | None:
    match = LETTER_AND_TEXT.fullmatch(text)
    return match[1] if match and f"{match[1]}. {match[2]}" in options else None


def _claimed_letter(text: str, letters: str) -> str | None:
    match = CLAIM.fullmatch(SENTENCE_END.split(text)[-1])
    if match is None:
        return None
    standing = {letter for letter in STANDING_LETTER.findall(text) if letter in letters}
    return match[1] if standing == {match[1]} else None
