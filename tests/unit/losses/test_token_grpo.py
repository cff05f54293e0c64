import math
from itertools import pairwise

import pytest
import torch

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.losses.objective import objective_of
from megatron_moe_grpo.losses.token_grpo import token_grpo_loss
from megatron_moe_grpo.losses.token_weights import BatchTotals, token_weights

EPSILON = 0.2
GRPO = objective_of(LossConfig(clip_epsilon=EPSILON))


def make_batch(num_sequences: int = 12, num_steps: int = 5, seed: int = 0):
    """Responses of 1..T tokens, ratios around 1, one group of four without signal."""
    generator = torch.Generator().manual_seed(seed)
    length_B = torch.randint(1, num_steps + 1, (num_sequences,), generator=generator)
    is_response_BT = torch.arange(num_steps) < length_B[:, None]
    old_logprob_BT = -3 * torch.rand(num_sequences, num_steps, generator=generator)
    logprob_BT = old_logprob_BT + 0.3 * torch.randn(num_sequences, num_steps, generator=generator)
    advantage_B = torch.randn(num_sequences, generator=generator)
    advantage_B[:4] = 0
    return logprob_BT.requires_grad_(), old_logprob_BT, advantage_B, is_response_BT


def test_token_grpo_loss_by_hand():
    # Two rollouts: ratios (1.5 clipped to 1.2, 1.0) with A = 1; ratio 1.1 with A = -2.
    old_logprob_BT = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]])
    logprob_BT = old_logprob_BT + torch.tensor([[1.5, 1.0], [1.1, 1.0]]).log()
    is_response_BT = torch.tensor([[True, True], [True, False]])
    term = token_grpo_loss(logprob_BT, old_logprob_BT, torch.tensor([1.0, -2.0]), is_response_BT, GRPO)
    assert term.loss.item() == pytest.approx(((-1.2 - 1.0) / 2 + 2.2) / 2, abs=1e-6)
    assert term.metrics["clip_fraction"].item() == 0.25
    assert term.metrics["ratio_mean"].item() == pytest.approx((1.25 + 1.1) / 2, abs=1e-6)


def test_token_grpo_loss_is_a_mean_of_means():
    logprob_BT, old_logprob_BT, advantage_B, is_response_BT = make_batch()
    term = token_grpo_loss(logprob_BT, old_logprob_BT, advantage_B, is_response_BT, GRPO)
    total = 0.0
    for i in range(12):
        terms = []
        for t in range(int(is_response_BT[i].sum())):
            ratio = math.exp(logprob_BT[i, t].item() - old_logprob_BT[i, t].item())
            clipped = min(max(ratio, 1 - EPSILON), 1 + EPSILON)
            advantage = advantage_B[i].item()
            terms.append(-min(ratio * advantage, clipped * advantage))
        total += sum(terms) / len(terms)
    assert term.loss.item() == pytest.approx(total / 12, abs=1e-6)


def test_token_grpo_loss_on_policy_gradient_is_minus_advantage_times_weight():
    # At ratio 1 the surrogate is plain policy gradient: dL/dlogprob = -A / (|y| B).
    _, old_logprob_BT, advantage_B, is_response_BT = make_batch()
    logprob_BT = old_logprob_BT.clone().requires_grad_()
    term = token_grpo_loss(logprob_BT, old_logprob_BT, advantage_B, is_response_BT, GRPO)
    term.loss.backward()
    torch.testing.assert_close(logprob_BT.grad, -advantage_B[:, None] * token_weights(is_response_BT))
    assert term.metrics["logprob_gap_max"].item() == 0
    assert term.metrics["ratio_mean"].item() == pytest.approx(1, abs=1e-6)


def test_token_grpo_loss_gives_nothing_to_groups_without_signal_and_padding():
    logprob_BT, old_logprob_BT, advantage_B, is_response_BT = make_batch()
    token_grpo_loss(logprob_BT, old_logprob_BT, advantage_B, is_response_BT, GRPO).loss.backward()
    assert (logprob_BT.grad[:4] == 0).all()
    assert (logprob_BT.grad[~is_response_BT] == 0).all()
    assert (logprob_BT.grad[4:] != 0).any()


def test_token_grpo_loss_without_any_signal_is_exactly_zero():
    logprob_BT, old_logprob_BT, _, is_response_BT = make_batch()
    term = token_grpo_loss(logprob_BT, old_logprob_BT, torch.zeros(12), is_response_BT, GRPO)
    term.loss.backward()
    assert term.loss.item() == 0 and (logprob_BT.grad == 0).all()


@pytest.mark.parametrize("cuts", [[0, 6, 12], [0, 1, 5, 12], list(range(13))])
def test_token_grpo_loss_is_the_same_in_micro_batches(cuts):
    logprob_BT, old_logprob_BT, advantage_B, is_response_BT = make_batch()
    whole = token_grpo_loss(logprob_BT, old_logprob_BT, advantage_B, is_response_BT, GRPO)
    (whole_gradient_BT,) = torch.autograd.grad(whole.loss, logprob_BT)
    parts = [
        token_grpo_loss(
            logprob_BT[start:stop],
            old_logprob_BT[start:stop],
            advantage_B[start:stop],
            is_response_BT[start:stop],
            GRPO,
            totals=BatchTotals.of(is_response_BT),
        )
        for start, stop in pairwise(cuts)
    ]
    for part in parts:
        part.loss.backward()
    # The gradient of an element does not know its neighbours: bitwise.  Sums change order: measured 6e-8.
    assert torch.equal(logprob_BT.grad, whole_gradient_BT)
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), abs=1e-6)
    for name in ("clip_fraction", "ratio_mean", "approx_kl"):
        total = sum(part.metrics[name].item() for part in parts)
        assert total == pytest.approx(whole.metrics[name].item(), abs=1e-6)
    largest = max(part.metrics["logprob_gap_max"].item() for part in parts)
    assert largest == whole.metrics["logprob_gap_max"].item()
