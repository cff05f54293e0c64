"""Texts of a user's row, taken only when they are texts."""

from collections.abc import Mapping
from typing import Any

from megatron_moe_grpo.data.row_place import RowPlace, shown


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


def _refuse_unless_text(value: object, key: str, place: RowPlace) -> None:
    if not isinstance(value, str):
        raise place.problem(
            key, "wrong type", got=f"{type(value).__name__} {shown(value)}", expected="text", remedy="put it in quotes"
        )
    # json reads "\ud800"; no tokenizer and no file can take it.
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise place.problem(key, "half of a surrogate pair", got=shown(value), expected="text that UTF-8 can write")
