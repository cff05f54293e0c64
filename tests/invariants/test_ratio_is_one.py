"""Recorded = replayed: at the weights that made the rollouts, every log-probability is found again and ratios are 1.

Decoding goes token by token through a key-value cache, on left-padded groups, without sequence parallelism; training
goes through whole sequences.  Nothing but rounding may differ.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from parallel_runs import ParallelRuns
from parallel_step import CASES
from tiny_policy import (
    NUM_EXPERTS,
    POLICY,
    PROBLEMS,
    SIZES,
    Bench,
    exploring,
    load_policy,
    trainable,
    update_settings,
)
from torch import Tensor

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.losses.advantages import group_advantages
from megatron_moe_grpo.mcore.moe_layers import router_sizes
from megatron_moe_grpo.mcore.routing_context import RoutingContext, SelectionPolicy
from megatron_moe_grpo.mcore.stochastic_router import route_with, stochastic_routers
from megatron_moe_grpo.models.token_batch import pad_prompts
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.routing.trace import RouteMode
from megatron_moe_grpo.training.update import accumulate_gradients

# Measured over all cases below: 3.6e-6 on one process (the temperature divides by 0.6), 2.4e-6 on two.
TOLERANCE = 1e-5
GAPS = ("rollout_train_logprob_gap", "rollout_train_selection_logprob_gap")


@dataclass(frozen=True)
class Variant:
    """One way to explore and to replay on one process."""

    policy: SelectionPolicy = POLICY
    explores_prompt: bool = True
    recompute: str = "none"
    micro_batch_prompts: int = len(PROBLEMS)
    prompts_per_forward: int = len(PROBLEMS)
    gate_tokens: str = "response"


VARIANTS = {
    "modality": Variant(),
    "multinomial": Variant(replace(POLICY, guidance="multinomial")),
    "noise": Variant(replace(POLICY, guidance="noise", noise_std=0.5)),
    "top_k": Variant(replace(POLICY, guidance="none")),
    "set": Variant(replace(POLICY, likelihood="set")),
    "product": Variant(replace(POLICY, likelihood="product")),
    "temperature": Variant(replace(POLICY, temperature=0.6), gate_tokens="all"),
    "response_only": Variant(explores_prompt=False, micro_batch_prompts=2),
    "micro_batches": Variant(micro_batch_prompts=1, prompts_per_forward=3),
    "recompute_full": Variant(recompute="full", micro_batch_prompts=2),
    "recompute_moe": Variant(recompute="moe", micro_batch_prompts=1, gate_tokens="all"),
}


def step(bench: Bench, variant: Variant, model: VisionLanguageModel, rollouts: RolloutBatch) -> dict[str, float]:
    """Metrics of the replayed forward and backward."""
    settings = update_settings(
        LossConfig(gate_tokens=variant.gate_tokens),
        policy=variant.policy,
        explores_prompt=variant.explores_prompt,
        micro_batch_prompts=variant.micro_batch_prompts,
        has_recompute=variant.recompute != "none",
    )
    advantage_B = group_advantages(rollouts.reward_B, rollouts.group_size).advantage_B
    return accumulate_gradients(trainable(model), bench.layout, rollouts, advantage_B, settings)


@pytest.mark.parametrize("name", VARIANTS)
def test_replay_finds_the_recorded_logprobs(name: str, bench: Bench) -> None:
    variant = VARIANTS[name]
    model = load_policy(bench.folder, variant.recompute)
    decoding = exploring(bench.processing, variant.explores_prompt, policy=variant.policy)
    rollouts = bench.roll_out(model, decoding, prompts_per_forward=variant.prompts_per_forward)
    rollouts.responses.trace.validate(NUM_EXPERTS)
    # Raises TraceError unless every (micro-batch, layer) was replayed once, and once more under recompute.
    metrics = step(bench, variant, model, rollouts)
    assert max(metrics[gap] for gap in GAPS) < TOLERANCE
    assert metrics["token_clip_fraction"] == metrics["gate_clip_fraction"] == 0


@pytest.mark.parametrize("name", CASES)
def test_replay_finds_the_recorded_logprobs_in_every_layout(name: str, parallel_runs: ParallelRuns) -> None:
    for rank in parallel_runs.outcomes(name):
        assert max(rank["metrics"][gap] for gap in GAPS) < TOLERANCE
        assert max(rank["later_metrics"][gap] for gap in GAPS) > 1e-2


def test_moved_routers_open_both_gaps(bench: Bench) -> None:
    model = load_policy(bench.folder)
    rollouts = bench.roll_out(model)
    with torch.no_grad():
        for router in stochastic_routers(model):
            router.weight.mul_(1.05)
    metrics = step(bench, Variant(), model, rollouts)
    assert min(metrics[gap] for gap in GAPS) > 1e-3


def test_another_trace_opens_the_token_gap(bench: Bench) -> None:
    model = load_policy(bench.folder)
    rollouts = bench.roll_out(model)
    trace = rollouts.responses.trace
    other = replace(trace, experts_BSLK=trace.experts_BSLK.roll(1, dims=0))
    metrics = step(bench, Variant(), model, replace(rollouts, responses=replace(rollouts.responses, trace=other)))
    assert metrics["rollout_train_logprob_gap"] > 1e-2


def test_rollouts_of_one_prompt_choose_different_experts(bench: Bench) -> None:
    group = bench.roll_out(load_policy(bench.folder)).responses.trace.rows(0, 3)
    last_prompt_tokens = group.trim_positions(-5 - 2, -2).experts_BSLK
    assert all((last_prompt_tokens[0, :, layer] != last_prompt_tokens[1, :, layer]).any() for layer in range(4))


def test_rollouts_obey_the_modality_mask(bench: Bench) -> None:
    rollouts = bench.roll_out(load_policy(bench.folder))
    trace = rollouts.responses.trace
    prompts = rollouts.prompts.batch(0, len(PROBLEMS)).repeated(rollouts.group_size)
    experts_BSLK = trace.experts_BSLK[:, : rollouts.prompts.num_positions].long()
    for modality, is_here_BS in enumerate((prompts.is_real_BS & ~prompts.is_vision_BS, prompts.is_vision_BS)):
        for layer in range(SIZES.layers):
            used = set(experts_BSLK[:, :, layer][is_here_BS].flatten().tolist())
            allowed = set(trace.is_allowed_L2N[layer, modality].nonzero().flatten().tolist())
            assert used == allowed  # Hundreds of draws: every open expert is used, no closed one is.


def test_one_sequence_alone_without_padding_or_cache_gives_the_recorded_logprobs(bench: Bench) -> None:
    """The same identity without any of the update's own code: logits of one unpadded sequence, its trace replayed."""
    model = load_policy(bench.folder)
    rollouts = bench.roll_out(model)
    worst = 0.0
    for index in range(len(rollouts.stream_B)):
        logprob_T = replayed_alone(bench, model, rollouts, index)
        recorded_T = rollouts.responses.token_logprob_BT[index, : len(logprob_T)]
        worst = max(worst, float((logprob_T - recorded_T).abs().max()))
    assert worst < TOLERANCE  # Measured: 1e-6.


@torch.no_grad()
def replayed_alone(bench: Bench, model: VisionLanguageModel, rollouts: RolloutBatch, index: int) -> Tensor:
    """Log-probabilities of one rollout's response tokens."""
    responses, prompt = rollouts.responses, index // rollouts.group_size
    num_tokens = int(responses.is_response_BT[index].sum())
    response = responses.token_ids_BT[index, :num_tokens]
    prompt_ids = list(rollouts.prompts.rows[prompt].prompt_ids)
    visuals = rollouts.prompts.visuals[prompt]
    batch = pad_prompts(
        [prompt_ids + response[:-1].tolist()], [visuals], bench.processing.vision_token_ids, pad_token_id=0,
    )  # fmt: skip
    end = rollouts.prompts.num_positions + num_tokens - 1
    trace = responses.trace.rows(index, index + 1).trim_positions(end - batch.token_ids_BS.shape[1], end)
    sizes = router_sizes(model.config)
    context = RoutingContext(RouteMode.REPLAY, batch.is_real_BS, batch.is_vision_BS, sizes, POLICY, trace=trace)
    route_with(model)(context)
    logprob_SV = torch.log_softmax(model(batch)[0], dim=-1)
    route_with(model)(None)
    return logprob_SV[len(prompt_ids) - 1 :].gather(1, response[:, None])[:, 0]
