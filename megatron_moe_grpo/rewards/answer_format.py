"""What of a response is thinking and what is the answer, and the reward for writing it so.  OThink-MR1 3.1.

The form is `<think>..</think><answer>..</answer>`, white space allowed before, between and after the two.
"""

import re
from typing import Literal

Extraction = Literal["strict", "official"]

OPEN_THINKING, CLOSE_THINKING = "<think>", "</think>"
OPEN_ANSWER, CLOSE_ANSWER = "<answer>", "</answer>"
LEADING_THINKING = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
NO_TAG = r"(?:(?!</?(?:think|answer)>).)*"
WHOLE_FORM = re.compile(rf"\s*<think>{NO_TAG}</think>\s*<answer>{NO_TAG}</answer>\s*", re.DOTALL)


def format_reward(response: str) -> float:
    """1.0 if the whole response has the form, each pair of tags once, else 0.0.  OThink-MR1 3.1 (R_format).

    What stands inside the tags does not matter, not even whether anything does.
    """
    return float(WHOLE_FORM.fullmatch(response) is not None)


def answer_of(response: str, extraction: Extraction) -> str | None:
    """The text that counts as the answer, without white space around it, or None where the response has none.

    With <answer> tags only what is inside them counts; without any, all that follows the thinking does.
    `strict` reads one pair of tags after at most one pair of <think> tags, and nothing else.  `official` drops all up
    to the last </think>, reads the last <answer>, and takes a missing </answer> for a response that was cut off.
    Thinking that never ends is no answer in both.
    """
    return _strict_answer(response) if extraction == "strict" else _official_answer(response)


def _strict_answer(response: str) -> str | None:
    thinking = LEADING_THINKING.match(response)
    text = response[thinking.end() :] if thinking else response
    if OPEN_ANSWER in text or CLOSE_ANSWER in text:
        before, _, rest = text.partition(OPEN_ANSWER)
        text, closing, after = rest.partition(CLOSE_ANSWER)
        if not closing or any(tag in before + text + after for tag in (OPEN_ANSWER, CLOSE_ANSWER)):
            return None
    return None if OPEN_THINKING in text or CLOSE_THINKING in text else text.strip()


def _official_answer(response: str) -> str | None:
    text = response.rpartition(CLOSE_THINKING)[2]
    _, opening, inside = text.rpartition(OPEN_ANSWER)
    if opening:
        return inside.partition(CLOSE_ANSWER)[0].strip()
    return None if OPEN_THINKING in text or CLOSE_ANSWER in text else text.strip()
