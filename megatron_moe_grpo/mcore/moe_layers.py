"""Which layers of a Megatron model are routed, and how many of everything its routers know."""

from dataclasses import dataclass

from megatron.core.transformer.transformer_config import TransformerConfig


@dataclass(frozen=True)
class RouterSizes:
    """The routers of a whole model, not of one pipeline stage."""

    num_layers: int
    """L, MoE layers."""
    num_experts: int
    """N."""
    num_active: int
    """K."""


def moe_layers(config: TransformerConfig) -> list[int]:
    """Layers of the whole model, from 0, whose feed-forward is routed: MoE layer l is `moe_layers(config)[l]`."""
    if config.num_moe_experts is None:
        return []
    if isinstance(config.moe_layer_freq, list):
        return [layer for layer, is_routed in enumerate(config.moe_layer_freq) if is_routed]
    assert config.moe_layer_freq == 1, "build_transformer_config lists the layers where not all are routed"
    return list(range(config.num_layers))


def router_sizes(config: TransformerConfig) -> RouterSizes | None:
    """None for a dense model."""
    if config.num_moe_experts is None:
        return None
    return RouterSizes(len(moe_layers(config)), config.num_moe_experts, config.moe_router_topk)
