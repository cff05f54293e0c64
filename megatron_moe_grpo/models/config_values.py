"""Strict reading of `config.json`: a value is there, has its type and is one that we support, or an error names it."""

import sys
from collections.abc import Mapping
from typing import Any

from megatron_moe_grpo.errors import ConfigError

# No model's; products of such sizes are still floats.
MAX_SIZE = 2**31 - 1


def require_value(section: Mapping[str, Any], key: str, kind: type) -> Any:
    """The value under a key that must be there, with its type; an int counts as a float, a bool never as an int.

    Raises:
        ConfigError: the key is missing, its value has another type, or a float is not finite.
    """
    got = section.get(key)
    right = _is_finite(got) if kind is float else isinstance(got, kind)
    if not right or (isinstance(got, bool) and kind is not bool):
        raise ConfigError(
            "config.json lacks a value or has one of the wrong type.",
            got=f"{key}: {got!r}",
            expected=f"{key}: a value of type {kind.__name__}",
        )
    return kind(got)


def require_size(section: Mapping[str, Any], key: str) -> int:
    """The count or length under a key that must be there: an int from 1 to MAX_SIZE.

    Raises:
        ConfigError: the key is missing or its value is something else.
    """
    got = section.get(key)
    if not is_whole(got, 1, MAX_SIZE):
        raise ConfigError(
            "config.json lacks a size, or has something else in its place.",
            got=f"{key}: {got!r}",
            expected=f"{key}: a whole number from 1 to {MAX_SIZE:,}",
        )
    return got


def optional_section(section: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The dict under a key; empty where the key is absent or null.

    Raises:
        ConfigError: the value is neither.
    """
    return {} if section.get(key) is None else require_value(section, key, dict)


def is_whole(value: object, first: int, last: int) -> bool:
    """True for an int from `first` to `last`; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool) and first <= value <= last


def _is_finite(value: object) -> bool:
    """JSON has integers that no float holds, and Python reads NaN and Infinity from it."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def require_one_of(section: Mapping[str, Any], key: str, supported: tuple[object, ...], default: object = None) -> None:
    """Raises ConfigError unless the value (or `default`, where the key is absent) is one of `supported`."""
    got = section.get(key, default)
    if got not in supported:
        raise ConfigError(
            "This model uses a feature that is not supported.",
            got=f"{key}: {got}",
            expected=f"{key}: {' or '.join(map(str, supported))}",
        )
