"""Texts of a user's row, taken only when they are texts, and the tags around an answer and its reasoning."""

import re
from collections.abc import Mapping
from typing import Any

from megatron_moe_grpo.data.row_place import RowPlace, shown

# Full matches only, and greedy: a second tag stays in the text.
REASONED = re.compile(r"<think>(.*)</think>\s*(<answer>.*</answer>)", re.DOTALL)
THINK_TAG = re.compile(r"<think>(.*)</think>", re.DOTALL)
ANSWER_TAG = re.compile(r"<answer>(.*)</answer>", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# OneThinker calls it `process`; R1-V's distilled CLEVR set, which OThink-MR1 trains on, `thinking`.
RATIONALE_KEYS = ("rationale", "process", "thinking")


def text_of(raw: Mapping[str, Any], key: str, place: RowPlace) -> str:
    """`raw[key]` without white space at its ends.  Raises DataError: absent, not a text, empty."""
    value = raw.get(key)
    if value is None:
        near = ' (a key named "answer" is not read)' if key == "solution" and "answer" in raw else ""
        raise place.problem(key, f"the row has no {key}", remedy=f"add it, or drop the row{near}")
    _refuse_unless_text(value, key, place)
    if not value.strip():
        raise place.problem(key, "empty")
    return value.strip()


def as_texts(value: object, key: str, place: RowPlace) -> list[str]:
    """`value` if it is a list of texts.  Raises DataError otherwise."""
    if not isinstance(value, list):
        raise place.problem(key, "wrong type", got=shown(value), expected="a list of texts")
    for item in value:
        _refuse_unless_text(item, key, place)
    return value


def number_as_text(value: object, key: str, place: RowPlace) -> str:
    """`value` as text where others write a bare number.  Raises DataError: neither text nor a number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise place.problem(
            key, "wrong type", got=f"{type(value).__name__} {shown(value)}", expected="text or a number"
        )
    return str(value)


def answer_and_rationale(text: str) -> tuple[str, str | None]:
    """Splits "<think>reasoning</think><answer>answer</answer>" into (the answer with its tags, reasoning or None)."""
    match = REASONED.fullmatch(text.strip())
    return (match[2], match[1]) if match else (text, None)


def open_answer(text: str, place: RowPlace) -> str:
    """The answer itself, without one <answer> tag around it.  Raises DataError: empty, or other tags in it."""
    tagged = ANSWER_TAG.fullmatch(text.strip())
    answer = (tagged[1] if tagged else text).strip()
    if not answer:
        raise place.problem("solution", "empty", got=shown(text))
    if any(tag in answer for tag in TAGS):
        raise place.problem(
            "solution",
            "tags that do not enclose one answer",
            got=shown(text),
            expected="the answer alone, <answer>..</answer>, or <think>..</think><answer>..</answer>",
        )
    return answer


def rationale_of(raw: Mapping[str, Any], beside_solution: str | None, place: RowPlace) -> str | None:
    """The row's reasoning, without one <think> tag around it; None where it has none, or an empty one.

    Raises DataError: given twice, not a text, other tags in it.
    """
    given = [key for key in RATIONALE_KEYS if raw.get(key) is not None]
    if len(given) + (beside_solution is not None) > 1:
        where = given + ["<think> in the solution"] * (beside_solution is not None)
        raise place.problem(given[-1], "the reasoning is given twice", got=" and ".join(where), remedy="keep one")
    text = beside_solution
    if given:
        text = raw[given[0]]
        _refuse_unless_text(text, given[0], place)
    if text is None:
        return None
    tagged = THINK_TAG.fullmatch(text.strip())
    text = (tagged[1] if tagged else text).strip()
    if any(tag in text for tag in TAGS):
        raise place.problem(given[0] if given else "solution", "tags inside the reasoning", got=shown(text))
    return text or None


def _refuse_unless_text(value: object, key: str, place: RowPlace) -> None:
    if not isinstance(value, str):
        raise place.problem(
            key, "wrong type", got=f"{type(value).__name__} {shown(value)}", expected="text", remedy="put it in quotes"
        )
    # json reads "\ud800"; no tokenizer and no file can take it.
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise place.problem(key, "half of a surrogate pair", got=shown(value), expected="text that UTF-8 can write")
