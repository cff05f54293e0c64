"""A family's model on Megatron; apart from the registry, because evaluating an exported folder must do without it."""

from collections.abc import Callable, Mapping
from typing import Any

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.models.internvl.model import build_internvl
from megatron_moe_grpo.models.qwen2_vl.model import build_qwen2_vl
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.models.vlm import VisionLanguageModel

BUILDERS: dict[str, Callable[..., VisionLanguageModel]] = {
    "internvl": build_internvl,
    "internvl_chat": build_internvl,
    "qwen2_vl": build_qwen2_vl,
    "qwen2_vl_moe": build_qwen2_vl,
}
"""One for each family of the registry."""


def build_model(
    hf_config: Mapping[str, Any],
    parallel: ParallelConfig,
    precision: str,
    is_first_stage: bool = True,
    is_last_stage: bool = True,
) -> VisionLanguageModel:
    """One pipeline stage with freshly initialised weights.

    Raises:
        ConfigError: a family or a feature that is not supported, or sizes that cannot be cut as asked.
    """
    family_of(hf_config)
    return BUILDERS[hf_config["model_type"]](hf_config, parallel, precision, is_first_stage, is_last_stage)
