"""What the weight maps of all families are made of: sizes out of the config, shapes, and rules that only rename."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from megatron_moe_grpo.conversion import Rename, Rule
from megatron_moe_grpo.conversion.ops import Shape
from megatron_moe_grpo.errors import ConfigError, ConversionError

Shapes = dict[str, Shape]
Architecture = TypeVar("Architecture")


def mapped_architecture(
    parse: Callable[[Mapping[str, Any]], Architecture], hf_config: Mapping[str, Any]
) -> Architecture:
    """`parse(hf_config)`.

    Raises:
        ConversionError: `parse` refused with a ConfigError: no map covers the model.
    """
    try:
        return parse(hf_config)
    except ConfigError as error:
        raise ConversionError(error.what, got=error.got, expected=error.expected, remedy=error.remedy) from error


def renames(shapes: Shapes, hf_prefix: str, prefix: str, repeat: Mapping[str, int] | None = None) -> list[Rule]:
    """One rule for each key: the same name behind another prefix."""
    return [Rule(Rename(), {hf_prefix + key: shape}, prefix + key, repeat or {}) for key, shape in shapes.items()]


def affine(name: str, *shape: int, bias: bool = True) -> Shapes:
    """A linear layer (outputs, inputs) or a norm (width)."""
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})
