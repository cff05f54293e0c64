"""Groups from extra rounds, padded otherwise than the first round's, are replayed like any others.

That every layout ends with the same groups is part of test_parallel_equals_one_process.py.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny_policy import GROUP_SIZE, NUM_EXPERTS, Bench, load_policy, rare_judge, trainable, update_settings

from megatron_moe_grpo.losses.advantages import group_advantages
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rollout.dynamic_sampling import FreshPrompts, fill_groups
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.training.update import accumulate_gradients


def filled(bench: Bench, model: VisionLanguageModel, num_rounds: int) -> tuple[RolloutBatch, dict[str, float]]:
    """Two short prompts without pictures, and any of the four rows in the extra rounds."""
    short = Bench(bench.layout, bench.folder, bench.processing, bench.rows[:2])
    roll_out = partial(short.roll_out, model, judge=rare_judge)
    fresh = FreshPrompts(bench.rows, 2, GROUP_SIZE, num_rounds, num_steps=100, seed=3)
    return fill_groups(roll_out(), fresh, 0, lambda step_rows: roll_out(step_rows=step_rows), bench.layout)


def test_groups_of_extra_rounds_are_replayed_with_ratio_one(bench: Bench) -> None:
    model = load_policy(bench.folder)
    first, none = filled(bench, model, 0)
    rollouts, metrics = filled(bench, model, 4)
    assert none == {}
    assert metrics["groups_replaced"] > 0
    assert rollouts.prompts.num_positions > first.prompts.num_positions
    assert any(row.row.visuals for row in rollouts.prompts.rows)
    rollouts.responses.trace.validate(NUM_EXPERTS)
    advantages = group_advantages(rollouts.reward_B, GROUP_SIZE)
    assert advantages.has_signal_P.sum() > group_advantages(first.reward_B, GROUP_SIZE).has_signal_P.sum()
    settings = update_settings(micro_batch_prompts=1)
    found = accumulate_gradients(trainable(model), bench.layout, rollouts, advantages.advantage_B, settings)
    # Measured 2e-6.
    assert found["rollout_train_logprob_gap"] < 1e-5
    assert found["rollout_train_selection_logprob_gap"] < 1e-5


def test_repadded_rollouts_change_no_loss(bench: Bench) -> None:
    model = load_policy(bench.folder)
    rollouts = bench.roll_out(model)
    advantage_B = group_advantages(rollouts.reward_B, GROUP_SIZE).advantage_B
    trained = trainable(model)
    as_made, repadded = (
        accumulate_gradients(trained, bench.layout, batch, advantage_B, update_settings())
        for batch in (rollouts, rollouts.padded_to(rollouts.prompts.num_positions + 3))
    )
    without_gaps = [name for name in as_made if "gap" not in name and "deviation" not in name]
    assert [repadded[name] for name in without_gaps] == pytest.approx(
        [as_made[name] for name in without_gaps], abs=1e-5
    )


def test_selected_groups_are_replayed_with_ratio_one(bench: Bench) -> None:
    model = load_policy(bench.folder)
    rollouts = bench.roll_out(model)
    chosen = rollouts.select([2, 0])
    chosen = replace(chosen, responses=replace(chosen.responses, counts=rollouts.responses.counts))
    assert torch.equal(chosen.stream_B, torch.tensor([106, 107, 108, 100, 101, 102]))
    advantage_B = group_advantages(chosen.reward_B, GROUP_SIZE).advantage_B
    found = accumulate_gradients(trainable(model), bench.layout, chosen, advantage_B, update_settings())
    assert found["rollout_train_logprob_gap"] < 1e-5
