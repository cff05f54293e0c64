"""The model families, by the `model_type` of their Hugging Face config.  To add one: docs, or copy `internvl/`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_moe_grpo.conversion import Rule
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.internvl.config import InternVLArchitecture
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.internvl.weight_map import weight_map as internvl_weight_map


@dataclass(frozen=True)
class Family:
    """What a family brings."""

    parse_architecture: Callable[[Mapping[str, Any]], InternVLArchitecture]
    """config.json dict -> sizes; ConfigError for what is not supported."""
    processing: type[InternVLProcessing]
    """Text and pictures -> model inputs."""
    weight_map: Callable[[Mapping[str, Any]], list[Rule]]
    """config.json dict -> conversion rules."""


FAMILIES: dict[str, Family] = {
    "internvl": Family(InternVLArchitecture.from_huggingface, InternVLProcessing, internvl_weight_map),
}


def family_of(hf_config: Mapping[str, Any]) -> Family:
    """The family of a `config.json` dict.

    Raises:
        ConfigError: no family of that name; the message lists those there are.
    """
    name = hf_config.get("model_type")
    if name not in FAMILIES:
        raise ConfigError(
            "This model family is not supported.",
            got=f"model_type: {name}",
            expected=f"model_type: {' or '.join(sorted(FAMILIES))}",
            remedy="InternVL checkpoints of type internvl_chat have a -HF version in the supported layout",
        )
    return FAMILIES[name]
