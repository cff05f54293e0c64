"""Sparse upcycling: dense feed-forwards become experts and a fresh router.  METHOD 5.

Settings in `upcycle_settings.py`, values in `upcycled_source.py`; what a family's `config.json` then says is the
family's own (`Family.upcycled_config`).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from megatron_moe_grpo.config.decoder_sizes import DecoderSizes
from megatron_moe_grpo.conversion import Converter, MemorySource, TensorSource, ZeroPadded, read_all
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.models.upcycle_settings import UpcycleSettings
from megatron_moe_grpo.models.upcycled_source import UpcycledSource


def upcycle(
    dense: TensorSource, hf_config: Mapping[str, Any], settings: UpcycleSettings
) -> tuple[TensorSource, dict[str, Any]]:
    """A dense model as a mixture of experts: its weights, made when they are read, and its `config.json` dict.

    Args:
        dense: Hugging Face weights.
        hf_config: its `config.json` dict, of any family.
    Raises:
        ConfigError: see `upcycled_config`.
        ConversionError: the weights are not exactly those that the config promises.
    """
    moe_config = upcycled_config(hf_config, settings)
    # Reads nothing, but names every key that is missing, misshapen or unknown.
    Converter(family_of(hf_config).weight_map(hf_config)).to_megatron(dense)
    moe_map = Converter(family_of(moe_config).weight_map(moe_config))
    return ZeroPadded(UpcycledSource(dense, settings), moe_map.zero_shapes), moe_config


def upcycle_state(
    state: Mapping[str, Tensor], hf_config: Mapping[str, Any], settings: UpcycleSettings
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As `upcycle`, for weights in memory; tensors that stay the same are shared, not copied."""
    source, moe_config = upcycle(MemorySource(state), hf_config, settings)
    return read_all(source), moe_config


def upcycled_config(hf_config: Mapping[str, Any], settings: UpcycleSettings) -> dict[str, Any]:
    """The `config.json` dict of the upcycled model.

    Raises:
        ConfigError: the model has experts already, a layer to upcycle does not exist, or the granularity does not
            divide the feed-forward.
    """
    expert_keys = _expert_keys(_dense_sizes(hf_config), settings)
    return family_of(hf_config).upcycled_config(hf_config, expert_keys)


def _dense_sizes(hf_config: Mapping[str, Any]) -> DecoderSizes:
    sizes = family_of(hf_config).parse_architecture(hf_config).text
    if sizes.num_experts is not None:
        raise ConfigError(
            "The model has experts already.", got=f"{sizes.num_experts} experts a layer", expected="a dense model"
        )
    return sizes


def _expert_keys(sizes: DecoderSizes, settings: UpcycleSettings) -> dict[str, Any]:
    """What the text config says about experts, in the words that all of transformers' Qwen models share."""
    width, remainder = divmod(sizes.ffn_size, settings.granularity)
    if remainder:
        raise ConfigError(
            "The feed-forward does not divide into slices.",
            got=f"inner width {sizes.ffn_size}, granularity {settings.granularity}",
            expected="a granularity that divides the width",
        )
    routed = settings.chosen_layers(sizes.num_layers)
    return {
        "num_experts": settings.num_experts,
        "num_experts_per_tok": settings.num_active,
        "norm_topk_prob": settings.renormalise,
        "moe_intermediate_size": width,
        "mlp_only_layers": [layer for layer in range(sizes.num_layers) if layer not in routed],
    }
