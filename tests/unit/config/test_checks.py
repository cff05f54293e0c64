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


GRPO = ("method=grpo", "rollout.token_temperature=1", "routing.guidance=none", "losses.gate_coefficient=0")
SINKHORN = ("method=sft", "routing.assignment=sinkhorn", "routing.guidance=none")
EXPERT_CHOICE = ("method=sft", "routing.assignment=expert_choice", "routing.guidance=none")
SAMPLED_TOKENS = "rollout.token_temperature=1"


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
        (GRPO, experts()),
        (("method=grpo", SAMPLED_TOKENS), DENSE),
        (("routing.guidance=none", SAMPLED_TOKENS, "losses.gate_coefficient=0"), experts()),
        (("routing.guidance=noise",), experts()),
        (SINKHORN, experts()),
        ((*EXPERT_CHOICE, "parallel.expert=2", "losses.router_z_coefficient=0.001"), experts()),
        ((SAMPLED_TOKENS, "rollout.token_top_p=0.9"), experts()),
        (("training.keep_best=1", "data.evaluation=rows.jsonl", "training.evaluate_every=5"), experts()),
        (("rollout.max_new_tokens=8", "rollout.overlong_tokens=7"), experts()),
        (("rollout.extra_rounds=3",), experts()),
        (("losses.rl_method=dapo", "losses.clip_epsilon_high=0.2"), experts()),
        (("losses.rl_method=cispo", "losses.clip_epsilon_high=0.1"), experts()),
        (("losses.rl_method=gspo", "losses.clip_epsilon=3e-4", "losses.clip_epsilon_high=4e-4"), experts()),
        (("losses.rl_method=sapo",), experts()),
        (("kl.schedule=dynamic", "kl.beta_min=0.1"), experts()),
        (("kl.schedule=linear", "kl.beta_min=0.2"), experts()),
        (("kl.schedule=constant", "kl.beta=0"), experts()),
        # What belongs to rollouts does not matter where there are none.
        (
            ("method=sft", "routing.guidance=none", "rollout.token_top_p=0.9", "rollout.overlong_tokens=9",
             "kl.schedule=dynamic", "kl.beta_min=1", "losses.rl_method=sapo", "losses.clip_epsilon_high=0.1"),
            experts(),
        ),
    ],
)  # fmt: skip
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
        (("training.keep_best=1", "training.evaluate_every=5"), experts(), "nothing measures it(?s:.*)keep_best=1"),
        (("training.keep_best=1", "data.evaluation=rows.jsonl"), experts(), "nothing measures(?s:.*)evaluate_every=0"),
        (("logging.profile_steps=[0,1]",), experts(), "cannot be profiled(?s:.*)profile_steps=\\[0, 1\\]"),
        (("logging.profile_steps=[3,2]",), experts(), "cannot be profiled"),
        (("logging.profile_steps=[1,1000000]",), experts(), "cannot be profiled(?s:.*)training.steps="),
        (
            ("method=grpo", SAMPLED_TOKENS), experts(),
            "method grpo trains tokens(?s:.*)guidance=modality(?s:.*)guidance=none --set losses.gate_coefficient=0",
        ),
        ((*GRPO, "routing.guidance=noise"), experts(), "method grpo trains tokens(?s:.*)guidance=noise"),
        ((*GRPO, "losses.gate_coefficient=0.5"), experts(), "method grpo trains tokens(?s:.*)gate_coefficient=0.5"),
        (("routing.guidance=none", SAMPLED_TOKENS), experts(), "top-K experts are certain(?s:.*)gate_coefficient=0"),
        ((*GRPO, "rollout.token_temperature=0"), experts(), "neither tokens nor experts(?s:.*)token_temperature=1"),
        (("method=grpo",), DENSE, "would be the same(?s:.*)token_temperature=1"),
        (("routing.guidance=none", "losses.gate_coefficient=0"), experts(), "neither tokens nor experts"),
        (("rollout.token_top_p=0.9",), experts(), "whatever the nucleus(?s:.*)token_top_p=0.9"),
        (("rollout.extra_rounds=1", "rollout.group_size=1"), experts(), "group of one(?s:.*)extra_rounds=0"),
        (("rollout.overlong_tokens=2",), experts(), "overlong_tokens=2, rollout.max_new_tokens=2"),
        (("losses.rl_method=sapo", "losses.clip_epsilon_high=0.3"), experts(), "no clip(?s:.*)sapo_temperature"),
        (
            ("losses.rl_method=gspo", "losses.clip_epsilon_high=4e-4"), experts(),
            "less far up(?s:.*)clip_epsilon=0.2, losses.clip_epsilon_high=0.0004(?s:.*)both widths",
        ),
        (("kl.schedule=dynamic", "kl.beta_min=0.2"), experts(), "beta_min=0.2, kl.beta_max=0.1"),
        (("kl.schedule=adaptive", "kl.beta=0"), experts(), "never leaves 0(?s:.*)kl.beta > 0"),
        ((*SINKHORN, "method=moe_grpo", SAMPLED_TOKENS, "losses.gate_coefficient=0"), experts(), "no likelihood"),
        (
            (*EXPERT_CHOICE, *GRPO), experts(),
            "expert_choice cannot be trained by reinforcement(?s:.*)method=grpo(?s:.*)method=sft",
        ),
        ((*SINKHORN, "routing.guidance=modality"), experts(), "under sinkhorn tokens do not(?s:.*)guidance=none"),
        ((*EXPERT_CHOICE, "parallel.tensor=2"), experts(), "expert_choice needs all positions(?s:.*)tensor=1"),
        ((*SINKHORN, "parallel.tensor=2"), experts(), "sinkhorn needs all positions"),
        (SINKHORN, DENSE, "this model has none(?s:.*)assignment=sinkhorn(?s:.*)assignment=policy"),
        (("method=sft", "losses.router_z_coefficient=0.1"), DENSE, "has none(?s:.*)router_z_coefficient=0.1"),
    ],
)  # fmt: skip
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
