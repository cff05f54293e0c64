import math

import pytest
import torch

from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.losses.advantages import group_advantages


def test_group_advantages_by_hand():
    # Mean 1/4, deviations 3/4 and -1/4, unbiased variance (9 + 3) / 16 / 3 = 1/4, std 1/2.
    result = group_advantages(torch.tensor([1.0, 0, 0, 0, 0, 0, 1, 1]), group_size=4)
    root = 0.5 / math.sqrt(1 / 3)
    expected_B = torch.tensor([1.5, -0.5, -0.5, -0.5, -root, -root, root, root])
    torch.testing.assert_close(result.advantage_B, expected_B, atol=1e-7, rtol=0)
    assert result.advantage_B.dtype == torch.float32
    assert result.has_signal_P.tolist() == [True, True]


def test_group_advantages_use_the_unbiased_deviation_of_torch():
    reward_B = torch.randn(40, generator=torch.Generator().manual_seed(0))
    reward_PG = reward_B.view(5, 8)
    expected_PG = (reward_PG - reward_PG.mean(1, keepdim=True)) / reward_PG.std(1, keepdim=True)
    # Worst case measured 1.2e-7: torch works in fp32 here.
    torch.testing.assert_close(group_advantages(reward_B, 8).advantage_B.view(5, 8), expected_PG, atol=2e-6, rtol=0)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -3.7, 1e30])
def test_group_advantages_of_equal_rewards_are_exactly_zero(reward):
    result = group_advantages(torch.tensor([reward] * 7 + [1.0, 0, 0, 0, 0, 0, 0]), group_size=7)
    assert result.advantage_B[:7].tolist() == [0.0] * 7
    assert result.has_signal_P.tolist() == [False, True]


def test_group_advantages_of_equal_rewards_are_zero_where_their_deviation_is_not():
    # In fp32 the mean of seven 0.1 is not 0.1: dividing by the standard deviation would give -0.9 seven times.
    reward_B = torch.tensor([0.1] * 7)
    assert reward_B.std().item() > 0
    assert group_advantages(reward_B, 7).advantage_B.tolist() == [0.0] * 7


def test_group_advantages_of_a_single_rollout_are_zero():
    result = group_advantages(torch.tensor([1.0, 0.0, 5.0]), group_size=1)
    assert result.advantage_B.tolist() == [0.0, 0.0, 0.0]
    assert result.has_signal_P.tolist() == [False, False, False]


def test_group_advantages_of_tiny_differences_are_finite():
    advantage_B = group_advantages(torch.tensor([0.0, 1e-38]), group_size=2).advantage_B
    torch.testing.assert_close(advantage_B, torch.tensor([-1.0, 1.0]) / math.sqrt(2))


def test_group_advantages_ignore_scale_and_shift_and_sum_to_zero():
    reward_B = torch.randn(32, generator=torch.Generator().manual_seed(1))
    advantage_B = group_advantages(reward_B, 8).advantage_B
    torch.testing.assert_close(group_advantages(3 * reward_B + 5, 8).advantage_B, advantage_B, atol=1e-5, rtol=0)
    assert advantage_B.view(4, 8).sum(1).abs().max() < 1e-5


def test_group_advantages_carry_no_gradient():
    reward_B = torch.tensor([1.0, 0.0], requires_grad=True)
    assert not group_advantages(reward_B, 2).advantage_B.requires_grad


def test_group_advantages_refuse_partial_groups():
    with pytest.raises(DataError, match="whole groups"):
        group_advantages(torch.zeros(7), 4)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_group_advantages_of_a_reward_that_is_not_finite_are_not_and_leave_other_groups_alone(wrong: float):
    result = group_advantages(torch.tensor([0.0, wrong, 1.0, 0.0]), 2)
    assert not result.advantage_B[:2].isfinite().any()
    assert result.advantage_B[2:].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)])
    # Equal infinities are no group without signal: its advantages would be exactly 0, and nobody would hear of it.
    assert group_advantages(torch.full((2,), wrong), 2).has_signal_P.tolist() == [True]


def test_group_advantages_without_division_are_only_centred():
    # Mean 1/4; the second group has no signal.
    result = group_advantages(torch.tensor([1.0, 0, 0, 0, 2, 2, 2, 2]), 4, divides_by_std=False)
    assert result.advantage_B.tolist() == [0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0]
    assert result.has_signal_P.tolist() == [True, False]


def test_group_advantages_without_division_are_exactly_zero_where_rounding_is_not():
    reward_B = torch.tensor([0.1] * 7, dtype=torch.float64)
    assert (reward_B - reward_B.mean()).abs().max() > 0
    assert group_advantages(reward_B, 7, divides_by_std=False).advantage_B.tolist() == [0.0] * 7


def test_group_advantages_without_division_scale_with_the_reward():
    reward_B = torch.randn(32, generator=torch.Generator().manual_seed(1))
    advantage_B = group_advantages(reward_B, 8, divides_by_std=False).advantage_B
    torch.testing.assert_close(group_advantages(3 * reward_B + 5, 8, divides_by_std=False).advantage_B, 3 * advantage_B)
    torch.testing.assert_close(
        advantage_B / reward_B.view(4, 8).std(1).repeat_interleave(8), group_advantages(reward_B, 8).advantage_B
    )
