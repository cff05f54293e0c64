"""Copied experts with renormalised weights cannot learn to route; the default initialisation can.  METHOD 5.

Equal experts whose weights add up to 1 give the same output whichever are chosen: all G rollouts are equal, every
advantage is 0, and nothing reaches a router.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_policy import (
    PROBLEMS,
    SIZES,
    Bench,
    constant_judge,
    exploring,
    gradients,
    load_policy,
    trainable,
    update_settings,
    write_policy,
)
from torch import Tensor

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.losses.advantages import GroupAdvantages, group_advantages
from megatron_moe_grpo.models.upcycle import UpcycleSettings
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.training.update import accumulate_gradients

TRAP = UpcycleSettings(expert_init="copy", renormalise=True, router_init_std=0.3)
WITHOUT_BALANCING = LossConfig(load_balancing_coefficient=0.0)
WITHOUT_GATE = LossConfig(load_balancing_coefficient=0.0, gate_coefficient=0.0)
GROUP_SIZE = 8
# An untrained model of small weights is sure of its greedy token whatever its experts say; this one is not.
LIVELY = replace(SIZES, initializer_std=0.2)


def step_of(bench: Bench, folder: Path) -> tuple[RolloutBatch, GroupAdvantages, dict[str, Tensor]]:
    """Rollouts in the paper's setting (greedy tokens), their advantages, and the gradient of token + gate loss."""
    model = load_policy(folder)
    closed = torch.tensor(bench.processing.suppressed_token_ids)
    greedy = replace(exploring(bench.processing, token_temperature=0.0), suppressed_token_ids=closed)
    rollouts = bench.roll_out(model, greedy, group_size=GROUP_SIZE)
    advantages = group_advantages(rollouts.reward_B, GROUP_SIZE)
    trained = trainable(model)
    settings = update_settings(WITHOUT_BALANCING)
    accumulate_gradients(trained, bench.layout, rollouts, advantages.advantage_B, settings)
    return rollouts, advantages, gradients(trained)


def routers(gradient: dict[str, Tensor]) -> list[Tensor]:
    return [value for name, value in gradient.items() if ".router." in name]


@pytest.fixture(scope="module")
def trap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("trap"), TRAP, sizes=LIVELY)


def test_copied_experts_with_renormalised_weights_give_equal_rollouts_and_no_gradient(
    bench: Bench, trap_folder: Path
) -> None:
    rollouts, advantages, gradient = step_of(bench, trap_folder)
    groups = rollouts.responses.token_ids_BT.view(len(PROBLEMS), GROUP_SIZE, -1)
    # The experts differ; what they compute does not.
    assert (rollouts.responses.trace.experts_BSLK[0] != rollouts.responses.trace.experts_BSLK[1]).any()
    assert torch.equal(groups, groups[:, :1].expand_as(groups))
    logprobs = rollouts.responses.token_logprob_BT.view_as(groups)
    assert (logprobs - logprobs[:, :1]).abs().max() < 1e-5  # Measured: 1e-6; the two weights add up to 1 +- 1 ulp.
    assert not advantages.has_signal_P.any()
    assert all(torch.count_nonzero(value) == 0 for value in routers(gradient))


def test_copied_experts_hide_the_router_from_the_token_loss_whatever_the_advantages(
    bench: Bench, trap_folder: Path
) -> None:
    """The trap itself, not its symptom: even with advantages from elsewhere, d logprob / d router is 0."""
    model = load_policy(trap_folder)
    rollouts = bench.roll_out(model)
    trained = trainable(model)
    advantage_B = torch.linspace(-1, 1, len(rollouts.stream_B))
    settings = update_settings(WITHOUT_GATE)
    accumulate_gradients(trained, bench.layout, rollouts, advantage_B, settings)
    gradient = gradients(trained)
    largest = max(float(value.abs().max()) for value in gradient.values())
    assert largest > 0.1
    assert all(value.abs().max() < 1e-6 * largest for value in routers(gradient))  # Measured: 1e-8.


@pytest.mark.parametrize(
    "settings",
    [
        UpcycleSettings(),
        replace(TRAP, expert_init="noise"),
        replace(TRAP, expert_init="drop"),
        replace(TRAP, renormalise=False),
    ],
    ids=["default", "noise", "drop", "weights_not_renormalised"],
)
def test_each_way_out_of_the_trap_gives_different_rollouts_and_a_gradient(
    bench: Bench, tmp_path: Path, settings: UpcycleSettings
) -> None:
    rollouts, advantages, gradient = step_of(bench, write_policy(tmp_path, settings, sizes=LIVELY))
    logprobs = rollouts.responses.token_logprob_BT.view(len(PROBLEMS), GROUP_SIZE, -1)[:, :, 0]
    # Measured: 0.04 to 0.8 nats, against 1e-6 in the trap.
    assert (logprobs - logprobs[:, :1]).abs().max() > 1e-2
    assert advantages.has_signal_P.any()
    assert all(value.abs().max() > 1e-3 for value in routers(gradient))


def test_groups_without_signal_give_exactly_zero(bench: Bench) -> None:
    model = load_policy(bench.folder)
    rollouts = bench.roll_out(model, judge=constant_judge)
    advantages = group_advantages(rollouts.reward_B, rollouts.group_size)
    assert not advantages.has_signal_P.any()
    trained = trainable(model)
    metrics = accumulate_gradients(
        trained, bench.layout, rollouts, advantages.advantage_B, update_settings(WITHOUT_BALANCING)
    )
    assert metrics["loss"] == metrics["token_loss"] == metrics["gate_loss"] == 0
    assert {name for name, value in gradients(trained).items() if torch.count_nonzero(value)} == set()


def test_a_group_without_signal_adds_nothing_to_the_others(bench: Bench) -> None:
    """Silent rollouts still count in the mean, so the gradients of each group alone add up to that of all."""
    model = load_policy(bench.folder)
    rollouts = bench.roll_out(model)
    trained = trainable(model)
    settings = update_settings(WITHOUT_BALANCING, micro_batch_prompts=1)
    advantage_B = group_advantages(rollouts.reward_B, rollouts.group_size).advantage_B
    whole: dict[str, Tensor] = {}
    for group in range(len(PROBLEMS)):
        is_silent_B = torch.arange(len(advantage_B)) // rollouts.group_size != group
        accumulate_gradients(trained, bench.layout, rollouts, advantage_B.masked_fill(is_silent_B, 0.0), settings)
        whole = {name: value + whole.get(name, 0.0) for name, value in gradients(trained).items()}
    accumulate_gradients(trained, bench.layout, rollouts, advantage_B, settings)
    together = gradients(trained)
    largest = max(float(value.abs().max()) for value in together.values())
    assert all((whole[name] - together[name]).abs().max() < 1e-6 * largest for name in together)  # Measured: 0.
