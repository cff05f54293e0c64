"""The policy update: the rollouts' tokens through the same model, their traces replayed.  MoE-GRPO Eq. 4-6."""

import torch
from torch import Tensor

from megatron_moe_grpo.losses.kl_loss import KlTerm, kl_loss
from megatron_moe_grpo.losses.token_grpo import token_grpo_loss
from megatron_moe_grpo.losses.token_weights import token_weights
from megatron_moe_grpo.mcore.forward_backward import Metrics, forward_backward
from megatron_moe_grpo.mcore.moe_layers import router_sizes
from megatron_moe_grpo.mcore.optimizer import TrainableModel
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.mcore.stochastic_router import route_with, stochastic_routers
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.training.metrics import update_metrics
from megatron_moe_grpo.training.update_batch import StepConstants, UpdateBatch, UpdateSettings, update_batches
from megatron_moe_grpo.training.update_guard import UpdateGuard, guarded_step


def update_policy(
    trainable: TrainableModel,
    layout: ParallelLayout,
    rollouts: RolloutBatch,
    advantage_B: Tensor,
    settings: UpdateSettings,
    guard: UpdateGuard,
    kl: KlTerm | None = None,
    *,
    has_signal: bool = True,
) -> dict[str, float]:
    """One optimizer step on `rollouts`; returns metrics of all ranks.  Loss: MoE-GRPO Eq. 6 + load balancing + KL.

    Gate-GRPO and load balancing are added inside the routers (StochasticRouter), Token-GRPO and KL here.

    Args:
        guard: skips the step where it would harm the weights.
        kl: needs `rollouts.reference_logprob_BT`.
        has_signal: False if no group has one, on any rank.
    """
    metrics = accumulate_gradients(trainable, layout, rollouts, advantage_B, settings, kl)
    return metrics | guarded_step(trainable, guard, metrics["loss"], has_signal=has_signal)


def accumulate_gradients(
    trainable: TrainableModel,
    layout: ParallelLayout,
    rollouts: RolloutBatch,
    advantage_B: Tensor,
    settings: UpdateSettings,
    kl: KlTerm | None = None,
) -> dict[str, float]:
    """Forward and backward over all micro-batches, without the optimizer step."""
    module = trainable.module
    layers = [router.layer for router in stochastic_routers(module)]
    sizes = router_sizes(module.config)
    batches, constants, ledger = update_batches(rollouts, advantage_B, layout, settings, layers, sizes)
    hand_over = route_with(module)

    def forward(model: torch.nn.Module, batch: UpdateBatch) -> Tensor:
        hand_over(batch.context)
        return model(batch.tokens, labels_BS=batch.labels_BS)

    def loss(batch: UpdateBatch, nll_BS: Tensor) -> tuple[Tensor, Metrics]:
        return _output_loss(batch, -nll_BS.float(), constants, settings, kl)

    trainable.zero_gradients()
    num_sequences, num_positions = batches[0].tokens.token_ids_BS.shape
    token_metrics = forward_backward(trainable.wrapped, batches, forward, loss, num_positions, num_sequences)
    hand_over(None)
    ledger.assert_consumed()
    return update_metrics(token_metrics, batches, layout, settings.losses, kl)


def _output_loss(
    batch: UpdateBatch, logprob_BS: Tensor, constants: StepConstants, settings: UpdateSettings, kl: KlTerm | None
) -> tuple[Tensor, Metrics]:
    """Token-GRPO and KL of one micro-batch, times what Megatron's averaging divides by."""
    objective, totals = settings.objective, constants.totals
    old_BS = batch.old_token_logprob_BS if settings.trusts_rollout_logprobs else logprob_BS.detach()
    term = token_grpo_loss(logprob_BS, old_BS, batch.advantage_B, batch.is_target_BS, objective, totals)
    gap_BS = (logprob_BS.detach() - batch.old_token_logprob_BS).abs()
    metrics = {
        "token_loss": term.loss.detach(),
        "token_clip_fraction": term.metrics["clip_fraction"],
        "token_policy_kl_nats": term.metrics["approx_kl"],
        "token_logprob_gap_max": gap_BS.masked_fill(~batch.is_target_BS, 0.0).max(),
    }
    loss = term.loss * settings.losses.token_coefficient
    if kl is not None:
        assert batch.reference_logprob_BS is not None, "a KL term needs the reference policy's log-probs"
        weight_BS = token_weights(batch.is_target_BS, objective.weighting, totals)
        term = kl_loss(
            logprob_BS,
            batch.reference_logprob_BS,
            batch.is_target_BS,
            weight_BS,
            totals.num_response_tokens,
            kl.estimator,
        )
        metrics |= {"kl_loss": term.loss.detach(), "kl_mean": term.metrics["kl"]}
        loss = loss + kl.beta * term.loss
    return loss * constants.scale, metrics
