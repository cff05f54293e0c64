"""Fresh prompts are drawn where a group has no signal, and only there.  A model does the same in tests/invariants."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor

from megatron_moe_grpo.data.order import BatchOrder
from megatron_moe_grpo.rewards.judge import Judgement
from megatron_moe_grpo.rollout.collect import StepRows
from megatron_moe_grpo.rollout.dynamic_sampling import FreshPrompts, fill_groups
from megatron_moe_grpo.rollout.prompts import PreparedPrompts
from megatron_moe_grpo.rollout.records import Responses, RolloutBatch, RoutingCounts

ROWS = [f"row-{index}" for index in range(100)]
GROUP_SIZE = 2


@dataclass
class TwoRanks:
    """Stands in for a layout of two data-parallel ranks: the other one lacks as many groups as it is told to."""

    lacking_elsewhere: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def maximum(self, tensor: Tensor) -> Tensor:
        return tensor.clamp(min=self.lacking_elsewhere)

    def sum_over_data(self, tensor: Tensor) -> Tensor:
        return tensor


def make_rollouts(rewards: list[tuple[float, float]], name: str, num_positions: int = 4) -> RolloutBatch:
    """One group for each pair of rewards; every stream is unique to `name`."""
    reward_B = torch.tensor(rewards).flatten()
    tokens_BT = torch.zeros(len(reward_B), 3, dtype=torch.long)
    counts = RoutingCounts(torch.ones(1, 2, 8), torch.ones(1), torch.tensor(float(len(name))))
    rows = [SimpleNamespace(id=f"{name}-{place}") for place in range(len(rewards))]
    return RolloutBatch(
        PreparedPrompts(rows, [None] * len(rows), num_positions, None),
        Responses(tokens_BT, tokens_BT == 0, tokens_BT.float(), None, counts),
        [name] * len(reward_B),
        [Judgement(reward, accuracy=reward, format=0.0) for reward in reward_B.tolist()],
        reward_B,
        GROUP_SIZE,
        torch.arange(len(reward_B)),
    )


def fresh_prompts(num_rounds: int, seed: int = 0) -> FreshPrompts:
    return FreshPrompts(ROWS, 4, GROUP_SIZE, num_rounds, num_steps=10, seed=seed)


def drawing(*rounds: list[tuple[float, float]]) -> tuple[Callable[[StepRows], RolloutBatch], list[list[int]]]:
    """A `roll_out` that gives each round's rewards at the places asked for, and the places that were asked for."""
    asked: list[list[int]] = []

    def roll_out(step_rows: StepRows) -> RolloutBatch:
        number = len(asked)
        asked.append(list(step_rows.places))
        rewards = [rounds[number][place] for place in step_rows.places]
        return make_rollouts(rewards, f"round{number}", num_positions=4 + number)

    return roll_out, asked


def names(rollouts: RolloutBatch) -> list[str]:
    return [row.id.split("-")[0] for row in rollouts.prompts.rows]


FIRST = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]


def test_fill_groups_replaces_groups_without_signal_round_by_round() -> None:
    # Round 0 helps place 2 only; round 1 is asked for place 0 only.
    roll_out, asked = drawing([(1.0, 1.0)] * 2 + [(0.0, 1.0)] * 2, [(0.5, 1.0)] * 4)
    filled, metrics = fill_groups(make_rollouts(FIRST, "first"), fresh_prompts(5), 0, roll_out, TwoRanks())
    assert asked == [[0, 2], [0]]
    assert names(filled) == ["round1", "first", "round0", "first"]
    assert filled.reward_B.view(4, 2).tolist() == [[0.5, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    assert filled.prompts.num_positions == 5
    assert metrics == {"groups_replaced": 0.5, "prompts_drawn": 4 + 2 + 1}
    # Guidance is counted on all prompts alike, those of the first round.
    assert filled.responses.counts.num_tokens == len("first")


def test_fill_groups_keeps_groups_that_no_round_replaced() -> None:
    roll_out, asked = drawing(*[[(1.0, 1.0)] * 4] * 3)
    filled, metrics = fill_groups(make_rollouts(FIRST, "first"), fresh_prompts(3), 0, roll_out, TwoRanks())
    assert asked == [[0, 2]] * 3
    assert names(filled) == ["first"] * 4 and filled.reward_B.tolist() == [0, 0, 1, 0, 1, 1, 0, 1]
    assert metrics == {"groups_replaced": 0.0, "prompts_drawn": 4 + 3 * 2}


def test_fill_groups_draws_nothing_where_all_groups_have_signal() -> None:
    roll_out, asked = drawing()
    first = make_rollouts([(0.0, 1.0)] * 4, "first")
    filled, metrics = fill_groups(first, fresh_prompts(3), 0, roll_out, TwoRanks())
    assert filled is first and asked == [] and metrics == {"groups_replaced": 0.0, "prompts_drawn": 4.0}


def test_fill_groups_without_extra_rounds_is_as_if_it_were_not_there() -> None:
    first = make_rollouts(FIRST, "first")
    filled, metrics = fill_groups(first, fresh_prompts(0), 0, drawing()[0], TwoRanks())
    assert filled is first and metrics == {}


def test_fill_groups_decodes_along_with_ranks_that_lack_more_and_ignores_what_it_does_not_need() -> None:
    roll_out, asked = drawing([(0.0, 1.0)] * 4)
    layout = TwoRanks(lacking_elsewhere=3)
    filled, metrics = fill_groups(make_rollouts(FIRST, "first"), fresh_prompts(1), 0, roll_out, layout)
    assert asked == [[0, 2, 1]]
    assert names(filled) == ["round0", "first", "round0", "first"]
    assert metrics == {"groups_replaced": 0.5, "prompts_drawn": 4 + 2}


def test_fresh_prompts_are_a_function_of_seed_step_and_round() -> None:
    first, again = (fresh_prompts(3).of_round(7, 2, [0]) for _ in range(2))
    assert first == again and len(first.rows) == 4 and set(first.rows) <= set(ROWS)
    others = [fresh_prompts(3).of_round(7, 1, [0]), fresh_prompts(3).of_round(6, 2, [0])]
    assert all(other.rows != first.rows for other in [*others, fresh_prompts(3, seed=1).of_round(7, 2, [0])])


def test_fresh_prompts_of_one_step_are_different_rows_in_another_order_than_the_first_rounds() -> None:
    rows = [row for number in range(3) for row in fresh_prompts(3).of_round(0, number, [0]).rows]
    assert len(set(rows)) == 12
    main = [ROWS[index] for step in range(25) for index in BatchOrder(100, 4, seed=0).indices(step)]
    fresh = [row for step in range(25) for row in fresh_prompts(1).of_round(step, 0, [0]).rows]
    assert sorted(main) == sorted(fresh) and main != fresh


def test_fresh_prompts_never_share_a_rollout_id() -> None:
    used = set(range(10 * 4 * GROUP_SIZE))
    for step in range(10):
        for number in range(3):
            first = fresh_prompts(3).of_round(step, number, [0]).first_stream
            streams = set(range(first, first + 4 * GROUP_SIZE))
            assert not streams & used
            used |= streams
