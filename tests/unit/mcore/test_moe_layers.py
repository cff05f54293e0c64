"""Counting the routed layers of a Megatron model."""

import contextlib

import pytest
from megatron.core.transformer.transformer_config import TransformerConfig

import megatron_moe_grpo.mcore  # noqa: F401  (the CPU platform, before anything of Megatron)
from megatron_moe_grpo.config.decoder_sizes import DecoderSizes
from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.mcore.moe_layers import RouterSizes, moe_layers, router_sizes
from megatron_moe_grpo.mcore.transformer_config import build_transformer_config, check_fits


def sizes_of(dense_layers: tuple[int, ...], num_experts: int | None = 4) -> DecoderSizes:
    experts = {"num_experts": num_experts, "num_active": 2, "expert_ffn_size": 20} if num_experts else {}
    return DecoderSizes(
        num_layers=4, hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=24, vocab_size=40,
        max_positions=32, norm_epsilon=1e-6, rope_theta=1e4, has_qk_norm=True, has_qkv_bias=False,
        ties_embeddings=False, dense_layers=dense_layers, **experts,
    )  # fmt: skip


def config_of(dense_layers: tuple[int, ...], num_experts: int | None = 4) -> TransformerConfig:
    return build_transformer_config(sizes_of(dense_layers, num_experts), ParallelConfig(), "fp32")


def test_moe_layers_leaves_out_the_dense_ones() -> None:
    assert moe_layers(config_of((0, 2))) == [1, 3]
    assert moe_layers(config_of(())) == [0, 1, 2, 3]
    assert moe_layers(config_of((), num_experts=None)) == []


def test_router_sizes_count_routed_layers_only() -> None:
    assert router_sizes(config_of((1,))) == RouterSizes(num_layers=3, num_experts=4, num_active=2)
    assert router_sizes(config_of(())) == RouterSizes(num_layers=4, num_experts=4, num_active=2)
    assert router_sizes(config_of((), num_experts=None)) is None


def test_a_model_of_moe_layers_only_keeps_the_stacked_names_of_its_checkpoints() -> None:
    """Megatron names the weights of a list of layers differently, and old checkpoints could not be read."""
    assert config_of(()).moe_layer_freq == 1
    config = config_of((0,))
    assert (config.moe_layer_freq, config.ffn_hidden_size, config.moe_ffn_hidden_size) == ([0, 1, 1, 1], 24, 20)


@pytest.mark.parametrize(("pipeline", "expert", "fits"), [(2, 2, False), (2, 1, True), (1, 2, True)])
def test_expert_parallelism_needs_experts_on_every_stage(pipeline: int, expert: int, fits: bool) -> None:
    parallel = ParallelConfig(pipeline=pipeline, expert=expert)
    with contextlib.nullcontext() if fits else pytest.raises(ConfigError, match="experts on 1 stage"):
        check_fits(sizes_of((0, 1)), parallel)
    check_fits(sizes_of((0, 2)), parallel)
    check_fits(sizes_of((), num_experts=None), ParallelConfig(pipeline=pipeline))
