"""Numbers of a step, worked by hand, and the same however the step is spread over ranks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from megatron_moe_grpo.losses.advantages import group_advantages
from megatron_moe_grpo.rewards.judge import Judgement
from megatron_moe_grpo.training.metrics import guidance_metrics, rollout_metrics, routing_metrics


@dataclass
class Ranks:
    """Stands in for a layout: remembers what it was asked to sum, adds what other ranks would."""

    others: Tensor | None = None
    asked: list[Tensor] = field(default_factory=list)

    def sum_over_data(self, tensor: Tensor) -> Tensor:
        self.asked.append(tensor.clone())
        return tensor if self.others is None else tensor + self.others


def rollouts(rewards: Sequence[float], lengths: Sequence[int], group_size: int) -> SimpleNamespace:
    is_response_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    # Right where the reward is 1, well formed where it is not 0.
    return SimpleNamespace(
        reward_B=torch.tensor(rewards),
        judgements=[Judgement(reward, float(reward == 1), float(reward != 0)) for reward in rewards],
        group_size=group_size,
        responses=SimpleNamespace(is_response_BT=is_response_BT),
    )


def metrics_of(rewards: Sequence[float], lengths: Sequence[int], group_size: int, layout: Ranks) -> dict[str, float]:
    advantages = group_advantages(torch.tensor(rewards), group_size)
    return rollout_metrics(rollouts(rewards, lengths, group_size), advantages, layout)


def test_rollout_metrics_by_hand() -> None:
    # Rewards 1, 0 | 1, 1 | 0, 0: mean 1/2; standard deviations sqrt(1/2), 0, 0; two groups of three without signal.
    found = metrics_of([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], [2, 1, 2, 2, 1, 1], 2, Ranks())
    assert found == {
        "reward_mean": pytest.approx(0.5),
        "reward_std": pytest.approx(0.5**0.5 / 3),
        "reward_accuracy_mean": pytest.approx(0.5),
        "reward_format_mean": pytest.approx(0.5),
        "groups_without_signal": pytest.approx(2 / 3),
        "response_tokens_mean": pytest.approx(9 / 6),
    }


def test_rollout_metrics_of_groups_of_one() -> None:
    found = metrics_of([0.5, 0.0], [1, 1], 1, Ranks())
    assert found["reward_mean"] == 0.25
    assert (found["reward_accuracy_mean"], found["reward_format_mean"]) == (0.0, 0.5)
    assert found["reward_std"] == 0.0
    assert found["groups_without_signal"] == 1.0


def test_rollout_metrics_do_not_depend_on_the_ranks() -> None:
    rewards, lengths = [1.0, 0.0, 0.5, 1.0, 0.0, 0.0, 1.0, 0.0], [2, 1, 2, 2, 1, 1, 3, 1]
    whole = metrics_of(rewards, lengths, 2, Ranks())
    second = Ranks()
    metrics_of(rewards[4:], lengths[4:], 2, second)
    halves = metrics_of(rewards[:4], lengths[:4], 2, Ranks(others=second.asked[0]))
    assert halves == pytest.approx(whole, rel=1e-12)


def test_routing_metrics_by_hand() -> None:
    # Layer 0: loads 2, 2 (max / mean 1); layer 1: loads 3, 1 (3 / 2).  Text and vision count together.
    top_k_L2N = torch.tensor([[[1.0, 2.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    found = routing_metrics(top_k_L2N, torch.tensor([2.0, 4.0]), torch.tensor(4.0))
    assert found["expert_load_max_over_mean"] == pytest.approx((1 + 1.5) / 2)
    assert found["expert_load_share_LN"] == [[0.5, 0.5], [0.75, 0.25]]
    assert found["dead_experts"] == 0
    # Sums 2 and 4 over 4 tokens: means 1/2 and 1.
    assert found["router_entropy_nats"] == pytest.approx(0.75)


def test_routing_metrics_of_one_busy_expert_is_the_number_of_experts() -> None:
    top_k_L2N = torch.zeros(3, 2, 8, dtype=torch.float64)
    top_k_L2N[:, 0, 5] = 7
    assert routing_metrics(top_k_L2N, torch.zeros(3), torch.tensor(7.0)) == {
        "router_entropy_nats": 0.0,
        "expert_load_max_over_mean": 8.0,
        "expert_load_share_LN": [[0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]] * 3,
        # 7 of 8 in each of 3 layers.
        "dead_experts": 21,
    }


def test_guidance_metrics_list_the_closed_experts_of_each_layer() -> None:
    is_allowed_L2N = torch.ones(2, 2, 4, dtype=torch.bool)
    is_allowed_L2N[0, 0, 3] = is_allowed_L2N[0, 0, 1] = is_allowed_L2N[1, 1, 0] = False
    assert guidance_metrics(is_allowed_L2N) == {
        "experts_closed_to_text": [[1, 3], []],
        "experts_closed_to_vision": [[], [0]],
    }
