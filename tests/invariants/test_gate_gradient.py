"""The gate loss that routers hang on their outputs is Gate-GRPO: value and gradient, layer by layer and through layers.

Three readings must agree: Megatron's accumulated gradient; autograd through MoE-GRPO Eq. 5 written down here from the
routers' inputs, with Plackett-Luce for K = 2 by hand; and central differences of the reported loss.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from replayed_logits import replayed_logits
from tiny_policy import GROUP_SIZE, Bench, gradients, guidance, load_policy, relative_gap, trainable, update_settings
from torch import Tensor

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.losses.advantages import group_advantages
from megatron_moe_grpo.mcore.optimizer import TrainableModel
from megatron_moe_grpo.mcore.stochastic_router import stochastic_routers
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.training.update import accumulate_gradients

EPSILON = 0.2
PERTURBATION = 3e-3


@dataclass(frozen=True)
class GateStep:
    """Rollouts and a model whose routers have moved since, so that ratios are not all 1 and some are clipped."""

    bench: Bench
    trained: TrainableModel
    rollouts: RolloutBatch
    advantage_B: Tensor

    def run(self, gate_tokens: str) -> dict[str, float]:
        losses = LossConfig(
            token_coefficient=0.0, load_balancing_coefficient=0.0, gate_tokens=gate_tokens, clip_epsilon=EPSILON
        )
        settings = update_settings(losses, micro_batch_prompts=2)
        return accumulate_gradients(self.trained, self.bench.layout, self.rollouts, self.advantage_B, settings)


@pytest.fixture(scope="module")
def step(bench: Bench) -> Iterator[GateStep]:
    model = load_policy(bench.folder)
    rollouts = bench.roll_out(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for router in stochastic_routers(model):
            router.weight.add_(0.05 * torch.randn(router.weight.shape, generator=generator))
    yield GateStep(bench, trainable(model), rollouts, group_advantages(rollouts.reward_B, GROUP_SIZE).advantage_B)


def gate_loss_by_hand(step: GateStep, gate_tokens: str) -> tuple[Tensor, Tensor]:
    """MoE-GRPO Eq. 5 as a triple loop over rollouts, layers and steps; also the share of clipped terms."""
    replayed = replayed_logits(step.trained.module, step.rollouts)
    responses, num_prompt = step.rollouts.responses, step.rollouts.prompts.num_positions
    is_allowed_L2N = guidance()
    total, clipped = torch.zeros(()), torch.zeros(())
    num_layers, num_sequences = replayed.logits_LBSN.shape[:2]
    for i in range(num_sequences):
        num_tokens = int(responses.is_response_BT[i].sum())
        positions = range(num_prompt - 1, num_prompt - 1 + num_tokens)
        if gate_tokens == "all":
            first = int(replayed.batch.is_real_BS[i].nonzero()[0])
            positions = range(first, num_prompt - 1 + num_tokens)
        weight = 1 / (num_sequences * num_layers * len(positions))
        for layer in range(num_layers):
            for p in positions:
                is_allowed_N = is_allowed_L2N[layer, int(replayed.batch.is_vision_BS[i, p])]
                z_N = replayed.logits_LBSN[layer, i, p].masked_fill(~is_allowed_N, -torch.inf)
                first_expert, second_expert = responses.trace.experts_BSLK[i, p, layer].tolist()
                left_N = z_N.exp().clone()
                logprob = torch.log(left_N[first_expert] / left_N.sum())
                without_first = left_N.sum() - left_N[first_expert]
                logprob = logprob + torch.log(left_N[second_expert] / without_first)
                ratio = torch.exp(logprob - responses.trace.logprob_BSL[i, p, layer])
                gain = ratio * step.advantage_B[i]
                limited = ratio.clamp(1 - EPSILON, 1 + EPSILON) * step.advantage_B[i]
                total = total - weight * torch.minimum(gain, limited)
                clipped = clipped + weight * bool(limited < gain)
    return total, clipped


@pytest.mark.parametrize("gate_tokens", ["response", "all"])
def test_gate_loss_and_gradient_equal_the_equation_by_hand(gate_tokens: str, step: GateStep) -> None:
    metrics = step.run(gate_tokens)
    attached = gradients(step.trained)
    loss, clipped = gate_loss_by_hand(step, gate_tokens)
    named = dict(step.trained.module.named_parameters())
    by_hand = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    assert abs(metrics["gate_loss"]) > 1e-3
    assert metrics["gate_loss"] == pytest.approx(float(loss), rel=1e-4, abs=1e-6)
    assert metrics["gate_clip_fraction"] == pytest.approx(float(clipped), abs=1e-6)
    assert 0.01 < float(clipped) < 0.9
    largest = max(float(value.abs().max()) for value in attached.values())
    for (name, got), expected in zip(attached.items(), by_hand, strict=True):
        if ".router." in name:
            assert got.abs().max() > 1e-3
            assert relative_gap(got, expected) < 1e-5, name  # Measured: 7e-7.
        expected = torch.zeros_like(got) if expected is None else expected
        assert (got - expected).abs().max() < 1e-5 * largest, name


def test_the_last_router_gets_the_slope_of_the_gate_loss(step: GateStep) -> None:
    assert_slope(step, stochastic_routers(step.trained.module)[-1:])


def test_all_routers_together_get_the_slope_of_the_gate_loss(step: GateStep) -> None:
    """Moving the first router moves what every later one sees: the gate loss flows through the layers."""
    assert_slope(step, stochastic_routers(step.trained.module))


def assert_slope(step: GateStep, routers: list) -> None:
    """Central difference of the reported loss along the gradient against the gradient's length."""
    step.run("all")
    directions = [router.weight.main_grad.clone() for router in routers]
    length = float(torch.stack([direction.square().sum() for direction in directions]).sum().sqrt())

    def loss_at(distance: float) -> float:
        move(distance / length)
        loss = step.run("all")["gate_loss"]
        move(-distance / length)
        return loss

    @torch.no_grad()
    def move(factor: float) -> None:
        for router, direction in zip(routers, directions, strict=True):
            router.weight.add_(direction, alpha=factor)

    slope = (loss_at(PERTURBATION) - loss_at(-PERTURBATION)) / (2 * PERTURBATION)
    assert length > 1e-2
    # Measured: 2e-6 for the last router; 4e-3 for all, where some of the ratios cross the kink of the clip.
    assert slope == pytest.approx(length, rel=1e-2)
