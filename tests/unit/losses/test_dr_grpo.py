import pytest
import torch
from policy_batches import make_policy_batch, settings

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.losses.advantages import group_advantages
from megatron_moe_grpo.losses.dr_grpo import dr_grpo
from megatron_moe_grpo.losses.grpo import grpo
from megatron_moe_grpo.losses.token_grpo import token_grpo_loss

DR_GRPO = dr_grpo(LossConfig())


def test_dr_grpo_by_hand() -> None:
    # Rewards 1, 0: centred 1/2, -1/2.  Ratios 1.5 (clipped to 1.2) and 1 | 1.1; B = 2, T_max = 4: each token 1/8.
    old_BT = torch.tensor([[-1.0, -2.0, 0, 0], [-0.5, 0, 0, 0]])
    logprob_BT = old_BT + torch.tensor([[1.5, 1.0, 1, 1], [1.1, 1, 1, 1]]).log()
    is_response_BT = torch.tensor([[True, True, False, False], [True, False, False, False]])
    advantage_B = group_advantages(torch.tensor([1.0, 0.0]), 2, DR_GRPO.divides_by_std).advantage_B
    term = token_grpo_loss(logprob_BT, old_BT, advantage_B, is_response_BT, DR_GRPO)
    assert term.loss.item() == pytest.approx((-0.5 * 1.2 - 0.5 * 1.0 + 0.5 * 1.1) / 8, abs=1e-7)


def test_dr_grpo_gradient_of_a_token_does_not_depend_on_its_responses_length() -> None:
    batch = make_policy_batch(spread=0.0)
    per_token_BT = batch.gradient_BT(settings("dr_grpo")) / batch.advantage_B[:, None]
    per_token_M = per_token_BT[4:][batch.is_response_BT[4:]]
    torch.testing.assert_close(per_token_M, torch.full_like(per_token_M, -1 / (12 * 5)), atol=1e-9, rtol=0)


def test_dr_grpo_equals_grpo_where_all_responses_are_full_and_the_deviation_is_one() -> None:
    # Rewards 0 and sqrt(2): unbiased deviation 1.
    reward_B = torch.tensor([0.0, 2.0**0.5] * 3)
    generator = torch.Generator().manual_seed(0)
    old_BT = -torch.rand(6, 4, generator=generator)
    logprob_BT, everywhere_BT = old_BT + 0.3 * torch.randn(6, 4, generator=generator), torch.ones(6, 4).bool()
    terms = []
    for objective in (DR_GRPO, grpo(LossConfig())):
        advantage_B = group_advantages(reward_B, 2, objective.divides_by_std).advantage_B
        terms.append(token_grpo_loss(logprob_BT, old_BT, advantage_B, everywhere_BT, objective).loss)
    torch.testing.assert_close(terms[0], terms[1])
