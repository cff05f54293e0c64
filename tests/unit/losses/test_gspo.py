import math

import pytest
import torch
from policy_batches import make_policy_batch, settings

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.losses.grpo import grpo
from megatron_moe_grpo.losses.gspo import gspo, sequence_log_ratio
from megatron_moe_grpo.losses.token_grpo import token_grpo_loss

GSPO = gspo(LossConfig())
WIDE = {"clip_epsilon": 0.2, "clip_epsilon_high": 0.2}


def test_sequence_log_ratio_by_hand() -> None:
    # Ratios 2 and 1/8: geometric mean 1/2.
    old_BT = torch.tensor([[-1.0, -1.0, float("nan")], [0.0, 0.0, 0.0]])
    logprob_BT = old_BT + torch.tensor([[2.0, 0.125, 1.0], [3.0, 3.0, 3.0]]).log()
    is_response_BT = torch.tensor([[True, True, False], [False, False, False]])
    log_ratio_BT = sequence_log_ratio(logprob_BT, old_BT, is_response_BT)
    torch.testing.assert_close(log_ratio_BT, torch.tensor([[math.log(0.5)] * 3, [0.0] * 3]))


def test_gspo_by_hand() -> None:
    # s = 1.001 is clipped to 1.0004 for A = 1; s = 0.9 with A = -2 to 0.9997; s = 0.9998 with A = -1 is not.
    s_B = torch.tensor([1.001, 0.9, 0.9998], dtype=torch.float64)
    old_BT = torch.full((3, 2), -1.0, dtype=torch.float64)
    logprob_BT = old_BT + s_B.log()[:, None] + torch.tensor([0.4, -0.4])
    advantage_B = torch.tensor([1.0, -2.0, -1.0], dtype=torch.float64)
    term = token_grpo_loss(logprob_BT, old_BT, advantage_B, torch.ones(3, 2, dtype=torch.bool), GSPO)
    # The token weights are fp32: measured 2e-8.
    assert term.loss.item() == pytest.approx((-1.0004 + 2 * 0.9997 + 0.9998) / 3, abs=2e-7)
    assert term.metrics["clip_fraction"].item() == pytest.approx(2 / 3)
    assert term.metrics["ratio_mean"].item() == pytest.approx(float(s_B.mean()))


def test_gspo_gradient_is_the_papers() -> None:
    # -s A / (|y| B) at every token of a sequence that is not clipped, 0 at every token of one that is.
    batch = make_policy_batch(spread=0.2)
    gradient_BT = batch.gradient_BT(settings("gspo", **WIDE))
    num_clipped = 0
    for i in range(12):
        here = batch.is_response_BT[i]
        advantage = batch.advantage_B[i].item()
        s = math.exp((batch.logprob_BT[i] - batch.old_BT[i])[here].mean().item()) if here.any() else 1.0
        is_clipped = s > 1.2 if advantage > 0 else s < 0.8
        num_clipped += is_clipped and advantage != 0
        expected = 0.0 if is_clipped or not here.any() else -s * advantage / (int(here.sum()) * 12)
        assert gradient_BT[i][here].tolist() == pytest.approx([expected] * int(here.sum()), abs=1e-8)
    assert num_clipped == 2


def test_gspo_keeps_or_drops_whole_responses() -> None:
    batch = make_policy_batch(spread=5e-4)
    gradient_BT = batch.gradient_BT(settings("gspo"))[4:]
    is_response_BT = batch.is_response_BT[4:]
    is_kept_B = (gradient_BT != 0).any(dim=1)
    assert 0 < is_kept_B.sum() < is_response_BT.any(dim=1).sum()
    assert torch.equal(gradient_BT != 0, is_response_BT & is_kept_B[:, None])


def test_gspo_equals_grpo_for_responses_of_one_token() -> None:
    generator = torch.Generator().manual_seed(0)
    old_BT = -torch.rand(6, 1, generator=generator)
    logprob_BT, one_B1 = old_BT + 0.3 * torch.randn(6, 1, generator=generator), torch.ones(6, 1).bool()
    advantage_B = torch.randn(6, generator=generator)
    terms = [token_grpo_loss(logprob_BT, old_BT, advantage_B, one_B1, of(LossConfig(**WIDE))) for of in (gspo, grpo)]
    torch.testing.assert_close(terms[0].loss, terms[1].loss)


def test_gspo_gates_keep_the_wide_region_of_single_ratios() -> None:
    assert GSPO.gate == grpo(LossConfig()).gate
    assert GSPO.token.epsilon_low == 3e-4 and GSPO.token.epsilon_high == 4e-4
