"""Strict reading of `config.json`: a value is there, has its type and is one that we support, or an error names it."""

from collections.abc import Mapping
from typing import Any

from megatron_moe_grpo.errors import ConfigError


def require_value(section: Mapping[str, Any], key: str, kind: type) -> Any:
    """The value under a key that must be there, with its type; an int counts as a float, a bool never as an int.

    Raises:
        ConfigError: the key is missing or its value has another type.
    """
    got = section.get(key)
    right = isinstance(got, int | float) if kind is float else isinstance(got, kind)
    if not right or (isinstance(got, bool) and kind is not bool):
        raise ConfigError(
            "config.json lacks a value or has one of the wrong type.",
            got=f"{key}: {got!r}",
            expected=f"{key}: a value of type {kind.__name__}",
        )
    return kind(got)


def require_one_of(section: Mapping[str, Any], key: str, supported: tuple[object, ...], default: object = None) -> None:
    """Raises ConfigError unless the value (or `default`, where the key is absent) is one of `supported`."""
    got = section.get(key, default)
    if got not in supported:
        raise ConfigError(
            "This model uses a feature that is not supported.",
            got=f"{key}: {got}",
            expected=f"{key}: {' or '.join(map(str, supported))}",
        )
