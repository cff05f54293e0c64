"""Rules between settings, and between settings and the model: each refused, its neighbour on the line accepted."""

from dataclasses import replace

import pytest

from megatron_moe_grpo.config import RunConfig, parse_config
from megatron_moe_grpo.config.checks import check_config, check_data_parallel
from megatron_moe_grpo.config.decoder_sizes import DecoderSizes
from megatron_moe_grpo.config.load import apply_overrides
from megatron_moe_grpo.errors import ConfigError

VALUES = {
    "name": "run",
    "method": "moe_grpo",
    "model": {"checkpoint": "checkpoint"},
    "data": {"train": "train.jsonl"},
    "training": {"steps": 10},
}
DENSE = DecoderSizes(
    num_layers=2, hidden_size=8, num_heads=2, num_kv_heads=1, head_dim=4, ffn_size=8, vocab_size=16, max_positions=64,
    norm_epsilon=1e-6, rope_theta=1e4, has_qk_norm=True, has_qkv_bias=False, ties_embeddings=False,
)  # fmt: skip


def config_with(*overrides: str) -> RunConfig:
    return parse_config(apply_overrides(VALUES, overrides))


def experts(num_experts: int = 8, num_active: int = 2) -> DecoderSizes:
    return replace(DENSE, num_experts=num_experts, num_active=num_active)


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [
        ((), experts()),
        (("parallel.expert=8",), experts()),
        (("routing.guidance_fraction=0.75",), experts()),
        (("routing.guidance_fraction=0.9", "routing.guidance=multinomial"), experts()),
        (("routing.guidance_fraction=0.29",), experts(100, 71)),
        (("routing.likelihood=set",), experts(8, 4)),
        (("routing.guidance_fraction=0",), experts(2, 2)),
        (("method=sft",), DENSE),
        (("precision=bf16",), experts()),
        (("training.updates_per_rollout=2",), experts()),
        (("training.prompts_per_step=8", "training.micro_batch_prompts=16"), experts()),
    ],
)
def test_check_config_accepts(overrides: tuple[str, ...], sizes: DecoderSizes) -> None:
    check_config(config_with(*overrides), sizes)


@pytest.mark.parametrize(
    ("overrides", "sizes", "message"),
    [
        (("parallel.expert=3",), experts(), "8 experts, parallel.expert=3(?s:.*)one of 1, 2, 4, 8"),
        (("parallel.expert=16",), experts(), "one of 1, 2, 4, 8"),
        (("routing.guidance_fraction=0.876",), experts(), "1 of 8 experts open(?s:.*)guidance_fraction <= 0.75"),
        (("routing.guidance_fraction=0.5",), experts(2, 2), "1 of 2"),
        # 0.29 * 100 is 28.999...96 in binary, and closes 29.
        (("routing.guidance_fraction=0.29",), experts(100, 72), "71 of 100 experts open"),
        (("routing.likelihood=set",), experts(8, 5), "K=5(?s:.*)K <= 4(?s:.*)plackett_luce"),
        ((), DENSE, "has none(?s:.*)upcycle"),
        (("method=sft", "parallel.expert=2"), DENSE, "needs experts(?s:.*)parallel.expert=1"),
        (("precision=bf16", "training.updates_per_rollout=2"), experts(), "exact old log-probs"),
        (("training.prompts_per_step=24", "training.micro_batch_prompts=16"), experts(), "equal micro-batches"),
    ],
)
def test_check_config_refuses(overrides: tuple[str, ...], sizes: DecoderSizes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config(config_with(*overrides), sizes)


@pytest.mark.parametrize(("prompts", "micro_batch", "ranks"), [(32, 16, 2), (32, 16, 32), (6, 4, 2), (8, 1, 1)])
def test_check_data_parallel_accepts_equal_shares(prompts: int, micro_batch: int, ranks: int) -> None:
    check_data_parallel(
        config_with(f"training.prompts_per_step={prompts}", f"training.micro_batch_prompts={micro_batch}"), ranks
    )


@pytest.mark.parametrize(("prompts", "micro_batch", "ranks"), [(32, 16, 3), (2, 1, 4), (12, 4, 2), (5, 2, 1)])
def test_check_data_parallel_refuses_unequal_shares(prompts: int, micro_batch: int, ranks: int) -> None:
    config = config_with(f"training.prompts_per_step={prompts}", f"training.micro_batch_prompts={micro_batch}")
    with pytest.raises(ConfigError, match=f"prompts_per_step={prompts}, {ranks} data-parallel ranks"):
        check_data_parallel(config, ranks)
