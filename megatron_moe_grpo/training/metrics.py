"""From what micro-batches and routers recorded to one line of numbers, the same under any parallel layout."""

import math
from typing import Any

import torch
from torch import Tensor

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.losses.advantages import GroupAdvantages
from megatron_moe_grpo.losses.kl_loss import KlTerm
from megatron_moe_grpo.mcore.forward_backward import Metrics
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.mcore.routing_records import recorded_logprob_BSL
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.training.update_batch import UpdateBatch

MAX_EXPONENT = 700.0
TOKEN_SUMS = ("token_loss", "token_clip_fraction", "token_policy_kl_nats")


def update_metrics(
    token_metrics: list[Metrics],
    batches: list[UpdateBatch],
    layout: ParallelLayout,
    losses: LossConfig,
    kl: KlTerm | None = None,
) -> dict[str, float]:
    """Losses and ratios of one update, summed over micro-batches, layers and ranks; gaps are the largest anywhere.

    Token metrics exist on the last pipeline stage only, selection metrics on each stage for its own layers.
    """
    token = {
        name: _total([metrics[name] for metrics in token_metrics], layout, over_tensor=False)
        for name in (*TOKEN_SUMS, *(() if kl is None else ("kl_loss", "kl_mean")))
    }
    token_gap = _largest([metrics["token_logprob_gap_max"] for metrics in token_metrics], layout)
    values = token | {
        "loss": losses.token_coefficient * token["token_loss"],
        "rollout_train_logprob_gap": token_gap,
        # math.expm1 raises where the result is beyond a double.
        "token_ratio_max_deviation": math.inf if token_gap > MAX_EXPONENT else math.expm1(token_gap),
    }
    if kl is not None:
        values["loss"] += kl.beta * values["kl_loss"]
    contexts = [batch.context for batch in batches if batch.context is not None]
    if not contexts:
        return values
    gates = [term for context in contexts for term in context.gate_by_layer.values()]
    balances = [loss for context in contexts for loss in context.balance_loss_by_layer.values()]
    values["gate_loss"] = _total([term.loss for term in gates], layout)
    values["gate_clip_fraction"] = _total([term.metrics["clip_fraction"] for term in gates], layout)
    values["gate_policy_kl_nats"] = _total([term.metrics["approx_kl"] for term in gates], layout)
    # Every layer adds its own Switch loss; the mean over layers is 1 at perfect balance, however deep the model.
    balance_sum = _total(balances, layout)
    values["load_balancing_loss"] = balance_sum / contexts[0].sizes.num_layers
    values["loss"] += losses.gate_coefficient * values["gate_loss"] + losses.load_balancing_coefficient * balance_sum
    if losses.router_z_coefficient > 0:
        z_sum = _total([loss for context in contexts for loss in context.router_z_loss_by_layer.values()], layout)
        values["router_z_loss"] = z_sum / contexts[0].sizes.num_layers
        values["loss"] += losses.router_z_coefficient * z_sum
    gaps = [_selection_gap(batch) for batch in batches if batch.context.record_by_layer]
    values["rollout_train_selection_logprob_gap"] = _largest(gaps, layout)
    return values


def rollout_metrics(rollouts: RolloutBatch, advantages: GroupAdvantages, layout: ParallelLayout) -> dict[str, float]:
    """Rewards, groups without signal, response lengths and routing of one step's rollouts, over all ranks."""
    reward_PG = rollouts.reward_B.view(-1, rollouts.group_size).double()
    accuracy = sum(judgement.accuracy for judgement in rollouts.judgements) / rollouts.group_size
    well_formed = sum(judgement.format for judgement in rollouts.judgements) / rollouts.group_size
    sums = torch.stack(
        (
            reward_PG.mean(dim=1).sum(),
            reward_PG.std(dim=1).sum() if rollouts.group_size > 1 else reward_PG.new_zeros(()),
            (~advantages.has_signal_P).sum(),
            rollouts.responses.is_response_BT.sum() / rollouts.group_size,
            *reward_PG.new_tensor([accuracy, well_formed, len(reward_PG)]),
        )
    ).double()
    reward, deviation, without_signal, num_tokens, accuracy, well_formed, num_prompts = layout.sum_over_data(
        sums
    ).tolist()
    return {
        "reward_mean": reward / num_prompts,
        "reward_std": deviation / num_prompts,
        "reward_accuracy_mean": accuracy / num_prompts,
        "reward_format_mean": well_formed / num_prompts,
        "groups_without_signal": without_signal / num_prompts,
        "response_tokens_mean": num_tokens / num_prompts,
    }


def routing_metrics(top_k_L2N: Tensor, entropy_sum_L: Tensor, num_tokens: Tensor) -> dict[str, Any]:
    """Router entropy (nats, mean over tokens and layers), and how a step's top-K choices spread over the experts.

    Sums of whole numbers in float64: the same to the last digit in any order of summation.
    """
    load_LN = top_k_L2N.sum(dim=1)
    return {
        "router_entropy_nats": float(entropy_sum_L.mean() / num_tokens),
        "expert_load_max_over_mean": float((load_LN.amax(dim=1) / load_LN.mean(dim=1)).mean()),
        "expert_load_share_LN": (load_LN / load_LN.sum(dim=1, keepdim=True)).tolist(),
        "dead_experts": int((load_LN == 0).sum()),
    }


def guidance_metrics(is_allowed_L2N: Tensor) -> dict[str, list[list[int]]]:
    """Experts closed to each modality: for each MoE layer, their numbers."""
    return {
        name: [(~is_allowed_N).nonzero().flatten().tolist() for is_allowed_N in is_allowed_L2N[:, modality]]
        for modality, name in enumerate(("experts_closed_to_text", "experts_closed_to_vision"))
    }


def _total(parts: list[Tensor], layout: ParallelLayout, over_tensor: bool = True) -> float:
    total = torch.stack(parts).double().sum() if parts else _zero(layout)
    total = layout.sum_over_pipeline(layout.sum_over_data(total))
    return (layout.sum_over_tensor(total) if over_tensor else total).item()


def _largest(parts: list[Tensor], layout: ParallelLayout) -> float:
    largest = torch.stack(parts).double().max() if parts else _zero(layout)
    return layout.maximum(largest).item()


def _zero(layout: ParallelLayout) -> Tensor:
    return torch.zeros((), dtype=torch.float64, device=layout.device)


def _selection_gap(batch: UpdateBatch) -> Tensor:
    """Largest |replayed - recorded| selection log-prob over real tokens of this rank's layers and positions."""
    here = batch.context.position_slice
    is_padding_Bs = ~batch.tokens.is_real_BS[:, here]
    gap_BsL = (recorded_logprob_BSL(batch.context) - batch.trace.logprob_BSL[:, here]).abs()
    gap_BsL = gap_BsL.masked_fill(is_padding_Bs[:, :, None], 0.0)
    return gap_BsL[:, :, list(batch.context.record_by_layer)].max()
