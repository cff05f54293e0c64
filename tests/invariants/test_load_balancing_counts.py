"""The load-balancing loss counts what was configured, over the real tokens of all micro-batches, and its gradient fits.

`sampled` counts the experts in the trace, against the masked policy they were drawn from; `top_k` the deterministic
top-K of the unmasked logits, against their softmax.  Both count each token fed to the model once, padding never.
"""

from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from replayed_logits import replayed_logits
from tiny_policy import (
    NUM_ACTIVE,
    NUM_EXPERTS,
    SIZES,
    Bench,
    gradients,
    guidance,
    load_policy,
    relative_gap,
    trainable,
    update_settings,
)
from torch import Tensor

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.mcore.optimizer import TrainableModel
from megatron_moe_grpo.mcore.stochastic_router import stochastic_routers
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.training.update import accumulate_gradients

Counts = Literal["sampled", "top_k"]
COEFFICIENT = 0.5
PERTURBATION = 1e-2


@dataclass(frozen=True)
class BalanceStep:
    """Rollouts, and the update with nothing but load balancing on."""

    bench: Bench
    trained: TrainableModel
    rollouts: RolloutBatch

    def run(self, counts: Counts, micro_batch_prompts: int = 2) -> dict[str, float]:
        losses = LossConfig(
            token_coefficient=0.0,
            gate_coefficient=0.0,
            load_balancing_coefficient=COEFFICIENT,
            load_balancing_counts=counts,
        )
        settings = update_settings(losses, micro_batch_prompts=micro_batch_prompts)
        no_advantage_B = torch.zeros(len(self.rollouts.stream_B))
        return accumulate_gradients(self.trained, self.bench.layout, self.rollouts, no_advantage_B, settings)


@pytest.fixture(scope="module")
def step(bench: Bench) -> BalanceStep:
    model = load_policy(bench.folder)
    return BalanceStep(bench, trainable(model), bench.roll_out(model))


def balance_by_hand(step: BalanceStep, counts: Counts) -> Tensor:
    """sum over layers of N sum_e f_e P_e, counted token by token.  Switch Eq. 4-6."""
    replayed = replayed_logits(step.trained.module, step.rollouts)
    trace = step.rollouts.responses.trace
    total = torch.zeros(())
    fed = replayed.batch.is_real_BS.nonzero().tolist()
    for layer in range(SIZES.layers):
        share_N, mean_prob_N = torch.zeros(NUM_EXPERTS), torch.zeros(NUM_EXPERTS)
        for i, p in fed:
            logits_N = replayed.logits_LBSN[layer, i, p]
            chosen = trace.experts_BSLK[i, p, layer].tolist()
            if counts == "top_k":
                chosen = logits_N.detach().argsort(descending=True)[:NUM_ACTIVE].tolist()
            else:
                # The probabilities are those of the law that was sampled from: closed experts have none.
                is_open_N = guidance()[layer, int(replayed.batch.is_vision_BS[i, p])]
                logits_N = logits_N.masked_fill(~is_open_N, -torch.inf)
            share_N[chosen] += 1 / (NUM_ACTIVE * len(fed))
            mean_prob_N = mean_prob_N + torch.softmax(logits_N, dim=0) / len(fed)
        total = total + NUM_EXPERTS * (share_N * mean_prob_N).sum()
    return total


@pytest.mark.parametrize("counts", ["sampled", "top_k"])
def test_loss_and_gradient_equal_a_count_by_hand(counts: Counts, step: BalanceStep) -> None:
    metrics = step.run(counts)
    attached = gradients(step.trained)
    total = balance_by_hand(step, counts)
    assert metrics["load_balancing_loss"] * SIZES.layers == pytest.approx(float(total), rel=1e-5)
    assert metrics["loss"] == pytest.approx(COEFFICIENT * float(total), rel=1e-5)
    named = {name: value for name, value in step.trained.module.named_parameters() if ".router." in name}
    for name, expected in zip(named, torch.autograd.grad(COEFFICIENT * total, list(named.values())), strict=True):
        assert relative_gap(attached[name], expected) < 1e-5, name  # Measured: 1.2e-6.


def test_sampled_and_top_k_count_different_experts(step: BalanceStep) -> None:
    sampled, top_k = step.run("sampled"), step.run("top_k")
    assert abs(sampled["load_balancing_loss"] - top_k["load_balancing_loss"]) > 1e-2


def test_padding_and_micro_batches_do_not_count(step: BalanceStep) -> None:
    for counts in ("sampled", "top_k"):
        values = [step.run(counts, micro_batch_prompts=size)["load_balancing_loss"] for size in (4, 2, 1)]
        assert values == pytest.approx(values[:1] * 3, rel=1e-6)


@pytest.mark.parametrize("counts", ["sampled", "top_k"])
def test_gradient_equals_a_finite_difference_on_router_weights(counts: Counts, step: BalanceStep) -> None:
    """Central differences at the largest entry of each router's gradient; f is a constant of the rollouts."""
    step.run(counts)
    for router in stochastic_routers(step.trained.module):
        gradient = router.weight.main_grad.clone()
        entry = gradient.abs().argmax()
        weight = router.weight.detach().view(-1)
        saved = weight[entry].clone()
        losses = []
        for shift in (PERTURBATION, -PERTURBATION):
            weight[entry] = saved + shift
            losses.append(step.run(counts)["loss"])
        weight[entry] = saved
        slope = (losses[0] - losses[1]) / (2 * PERTURBATION)
        # fp32 losses of about 2 leave 1e-7 / 1e-2 of noise in a slope of about 1e-1.
        assert slope == pytest.approx(float(gradient.view(-1)[entry]), rel=2e-3)
