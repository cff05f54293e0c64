"""Accuracy of a multiple-choice response.  MoE-GRPO 3.2 (reward 1 for the right option, else 0).

The paper does not say how the option is read from the text.  Choice made here, `strict`: only forms on a list are read,
and whatever could mean two options is wrong.  A lenient reader is a reward the policy can learn to cheat ("A or B").
"""

import re
import string
from collections.abc import Sequence

THINKING = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
OPEN_ANSWER, CLOSE_ANSWER = "<answer>", "</answer>"
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


def multiple_choice_reward(response: str, row_solution: str, options: Sequence[str]) -> float:
    """1.0 if the response chooses the option `row_solution`, else 0.0.  MoE-GRPO 3.2.

    Args:
        response: decoded text without special tokens.
        row_solution: capital letter of the right option.
        options: ready strings "A. 3", "B. 4", ...
    """
    assert row_solution in string.ascii_uppercase[: len(options)], "rows are checked when they are loaded"
    return float(extract_letter(response, options) == row_solution)


def extract_letter(response: str, options: Sequence[str]) -> str | None:
    """The letter of the option that `response` chooses, or None.

    A leading <think>..</think> is dropped; with <answer> tags only what is inside counts, and there must be one pair.
    Then, in capital letters only (a lower-case "a" is an article):
    1. the letter alone: `B`, `B.`, `B:`, `(B)`, `B)`;
    2. the letter with its own option's text: `B. 4`;
    3. a last sentence that claims one letter, `The answer is B.` (CLAIM is the list), while no other option's letter
       stands anywhere before it.
    A letter beyond the options is never read.
    """
    thinking = THINKING.match(response)
    text = _inside_answer_tag(response[thinking.end() :] if thinking else response)
    if text is None or "<think>" in text:
        return None
    letters = string.ascii_uppercase[: len(options)]
    letter = _letter_alone(text) or _letter_with_its_text(text, options) or _claimed_letter(text, letters)
    return letter if letter is not None and letter in letters else None


def _inside_answer_tag(text: str) -> str | None:
    """What stands between one pair of tags, the whole text without tags, None for anything else."""
    if OPEN_ANSWER not in text and CLOSE_ANSWER not in text:
        return text.strip()
    before, _, rest = text.partition(OPEN_ANSWER)
    inside, closing, after = rest.partition(CLOSE_ANSWER)
    if not closing or any(tag in before + inside + after for tag in (OPEN_ANSWER, CLOSE_ANSWER)):
        return None
    return inside.strip()


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
