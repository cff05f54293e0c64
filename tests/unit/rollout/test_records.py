"""Groups picked out of rollouts and put together again: everything that belongs to a rollout stays with it."""

from types import SimpleNamespace

import pytest
import torch

from megatron_moe_grpo.rewards.judge import Judgement
from megatron_moe_grpo.rollout.prompts import PreparedPrompts
from megatron_moe_grpo.rollout.records import Responses, RolloutBatch
from megatron_moe_grpo.routing.trace import RoutingTrace

GROUP_SIZE, NUM_NEW, NUM_LAYERS, NUM_ACTIVE = 2, 3, 2, 2


def make_rollouts(first_prompt: int, num_prompts: int, num_positions: int, has_reference: bool = False) -> RolloutBatch:
    """Every value of rollout b of prompt p holds 10 p + b."""
    place_B = torch.arange(num_prompts).repeat_interleave(GROUP_SIZE) + first_prompt
    value_B = 10 * place_B + torch.arange(num_prompts * GROUP_SIZE) % GROUP_SIZE
    value_BT = value_B[:, None].expand(-1, NUM_NEW)
    num_fed = num_positions + NUM_NEW - 1
    experts_BSLK = torch.tensor([3, 4], dtype=torch.int16).expand(len(value_B), num_fed, NUM_LAYERS, NUM_ACTIVE)
    logprob_BSL = -value_B[:, None, None].float().expand(-1, num_fed, NUM_LAYERS)
    names = [f"row-{first_prompt + place}" for place in range(num_prompts)]
    return RolloutBatch(
        PreparedPrompts([SimpleNamespace(id=name) for name in names], list(names), num_positions, None),
        Responses(value_BT, value_BT > 0, value_BT.float(), RoutingTrace(experts_BSLK, logprob_BSL, None), None),
        [str(value) for value in value_B.tolist()],
        [Judgement(float(value), accuracy=0.0, format=0.0) for value in value_B.tolist()],
        value_B.float(),
        GROUP_SIZE,
        value_B,
        value_BT.float() if has_reference else None,
    )


def check(rollouts: RolloutBatch, prompts: list[int]) -> None:
    """All parts of `rollouts` are those of `prompts`."""
    values = [10 * prompt + rollout for prompt in prompts for rollout in range(GROUP_SIZE)]
    assert [row.id for row in rollouts.prompts.rows] == rollouts.prompts.visuals == [f"row-{p}" for p in prompts]
    assert rollouts.texts == [str(value) for value in values]
    assert [judgement.reward for judgement in rollouts.judgements] == values
    assert rollouts.reward_B.tolist() == rollouts.stream_B.tolist() == values
    responses, num_fed = rollouts.responses, rollouts.prompts.num_positions + NUM_NEW - 1
    for per_token_BT in (responses.token_ids_BT, responses.token_logprob_BT):
        assert per_token_BT[:, -1].tolist() == values
    assert responses.trace.experts_BSLK.shape == (len(values), num_fed, NUM_LAYERS, NUM_ACTIVE)
    assert (-responses.trace.logprob_BSL[:, -1, 0]).tolist() == values


def test_select_takes_whole_groups_in_the_order_asked() -> None:
    check(make_rollouts(1, 4, 5), [1, 2, 3, 4])
    check(make_rollouts(1, 4, 5).select([2, 0, 2]), [3, 1, 3])


def test_cat_pads_the_shorter_prompts_on_the_left() -> None:
    joined = RolloutBatch.cat([make_rollouts(1, 2, 5), make_rollouts(3, 2, 9)])
    check(joined, [1, 2, 3, 4])
    assert joined.prompts.num_positions == 9
    experts_SK = joined.responses.trace.experts_BSLK[0, :, 0]
    # Padding runs through the model: its experts exist and are distinct.
    assert experts_SK.tolist() == [[0, 1]] * 4 + [[3, 4]] * (5 + NUM_NEW - 1)
    assert joined.responses.trace.logprob_BSL[0, :4].abs().max() == 0


def test_cat_of_one_batch_and_padding_by_nothing_change_nothing() -> None:
    rollouts = make_rollouts(1, 3, 5)
    check(RolloutBatch.cat([rollouts]), [1, 2, 3])
    same = rollouts.padded_to(5).responses.trace
    assert torch.equal(same.experts_BSLK, rollouts.responses.trace.experts_BSLK)


def test_reference_logprobs_travel_with_their_rollouts() -> None:
    parts = [make_rollouts(first, 2, 5, has_reference=True) for first in (1, 3)]
    chosen = RolloutBatch.cat(parts).select([3, 0])
    assert chosen.reference_logprob_BT[:, 0].tolist() == [40, 41, 10, 11]
    with pytest.raises(AssertionError, match="either all parts"):
        RolloutBatch.cat([parts[0], make_rollouts(3, 2, 5)])
