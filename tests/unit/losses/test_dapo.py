import pytest
import torch
from policy_batches import make_policy_batch, settings

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.losses.dapo import dapo
from megatron_moe_grpo.losses.grpo import grpo
from megatron_moe_grpo.losses.token_grpo import token_grpo_loss

DAPO = dapo(LossConfig())


def test_dapo_by_hand() -> None:
    # Ratios 1.5 -> 1.28 and 1.25 with A = 1; ratio 0.5 -> 0.8 with A = -2; three tokens in all, each 1/3.
    old_BT = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]])
    logprob_BT = old_BT + torch.tensor([[1.5, 1.25], [0.5, 1.0]]).log()
    is_response_BT = torch.tensor([[True, True], [True, False]])
    term = token_grpo_loss(logprob_BT, old_BT, torch.tensor([1.0, -2.0]), is_response_BT, DAPO)
    assert term.loss.item() == pytest.approx((-1.28 - 1.25 + 1.6) / 3, abs=1e-6)
    assert term.metrics["clip_fraction"].item() == pytest.approx(2 / 3)


def test_dapo_clips_higher_above_than_below() -> None:
    ratio, ones = torch.tensor([1.27, 1.29, 0.81, 0.79]), torch.ones(4)
    for surrogate in (DAPO.token, DAPO.gate):
        assert surrogate.withheld(ratio, ones).tolist() == [0, 1, 0, 0]
        assert surrogate.withheld(ratio, -ones).tolist() == [0, 0, 0, 1]
        for sign in (1.0, -1.0):
            logprob = ratio.log().requires_grad_()
            surrogate(logprob, torch.zeros(4), sign * ones).sum().backward()
            assert torch.equal(logprob.grad == 0, surrogate.withheld(ratio, sign * ones).bool())


def test_dapo_tokens_of_long_responses_weigh_as_much_as_those_of_short_ones() -> None:
    batch = make_policy_batch(spread=0.0)
    per_token_BT = batch.gradient_BT(settings("dapo")) / batch.advantage_B[:, None]
    per_token_M = per_token_BT[4:][batch.is_response_BT[4:]]
    torch.testing.assert_close(per_token_M, torch.full_like(per_token_M, -1 / 32), atol=1e-8, rtol=0)
    assert int(batch.is_response_BT.sum()) == 32


def test_dapo_equals_grpo_for_equal_lengths_and_equal_widths() -> None:
    generator = torch.Generator().manual_seed(0)
    old_BT = -torch.rand(6, 4, generator=generator)
    logprob_BT, everywhere_BT = old_BT + 0.3 * torch.randn(6, 4, generator=generator), torch.ones(6, 4).bool()
    advantage_B = torch.randn(6, generator=generator)
    losses = LossConfig(clip_epsilon_high=0.2)
    terms = [token_grpo_loss(logprob_BT, old_BT, advantage_B, everywhere_BT, of(losses)) for of in (dapo, grpo)]
    torch.testing.assert_close(terms[0].loss, terms[1].loss)
