import pytest
import torch
from megatron.core.transformer.moe.moe_utils import switch_load_balancing_loss_func

from megatron_moe_grpo.losses.load_balancing import expert_fractions, load_balancing_loss


def make_batch(num_tokens: int = 24, num_experts: int = 8, num_active: int = 2):
    """Router probabilities, their top-K, and an even weight a token."""
    logits_MN = torch.randn(num_tokens, num_experts, generator=torch.Generator().manual_seed(0))
    probs_MN = logits_MN.softmax(-1).requires_grad_()
    experts_MK = probs_MN.detach().topk(num_active).indices
    weight_M = torch.full((num_tokens,), 1 / num_tokens)
    return probs_MN, experts_MK, weight_M


def test_expert_fractions_by_hand():
    experts_MK = torch.tensor([[0, 1], [1, 2], [1, 0]], dtype=torch.int16)
    fraction_N = expert_fractions(experts_MK, 4, torch.tensor([True, True, False]))
    assert fraction_N.tolist() == [0.25, 0.5, 0.25, 0.0]
    assert fraction_N.dtype == torch.float32


def test_expert_fractions_of_nothing_counted_are_zero():
    fraction_N = expert_fractions(torch.tensor([[0, 1]]), 4, torch.tensor([False]))
    assert fraction_N.tolist() == [0.0] * 4


def test_load_balancing_loss_by_hand():
    # f = (.75, .25), P = (.7, .3): 2 * (.525 + .075) = 1.2.
    probs_MN = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    loss = load_balancing_loss(probs_MN, torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5]))
    assert loss.item() == pytest.approx(1.2, abs=1e-6)


@pytest.mark.parametrize("num_active", [1, 2, 4])
def test_load_balancing_loss_is_one_at_perfect_balance(num_active):
    experts_MK = (torch.arange(8)[:, None] + torch.arange(num_active)) % 8
    fraction_N = expert_fractions(experts_MK, 8, torch.ones(8, dtype=torch.bool))
    loss = load_balancing_loss(torch.full((8, 8), 1 / 8), fraction_N, torch.full((8,), 1 / 8))
    assert loss.item() == pytest.approx(1, abs=1e-6)


def test_load_balancing_loss_is_n_over_k_at_collapse():
    experts_MK = torch.tensor([[0, 1]]).expand(6, 2)
    probs_MN = torch.tensor([[0.5, 0.5, 0, 0, 0, 0, 0, 0]]).expand(6, 8)
    fraction_N = expert_fractions(experts_MK, 8, torch.ones(6, dtype=torch.bool))
    assert load_balancing_loss(probs_MN, fraction_N, torch.full((6,), 1 / 6)).item() == pytest.approx(4, abs=1e-6)


def test_load_balancing_loss_equals_megatron_core():
    probs_MN, experts_MK, weight_M = make_batch()
    fraction_N = expert_fractions(experts_MK, 8, torch.ones(24, dtype=torch.bool))
    loss = load_balancing_loss(probs_MN, fraction_N, weight_M)
    (gradient_MN,) = torch.autograd.grad(loss, probs_MN)
    oracle = switch_load_balancing_loss_func(
        probs_MN, torch.bincount(experts_MK.flatten(), minlength=8), 24, topk=2, num_experts=8, moe_aux_loss_coeff=1.0
    )
    oracle.backward()
    # Measured 0 for the loss, 2e-9 for the gradient.
    torch.testing.assert_close(loss, oracle, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient_MN, probs_MN.grad, atol=1e-7, rtol=0)


def test_load_balancing_loss_gradient_flows_through_the_probabilities_alone():
    probs_MN, experts_MK, weight_M = make_batch()
    fraction_N = expert_fractions(experts_MK, 8, torch.ones(24, dtype=torch.bool)).requires_grad_()
    weight_M.requires_grad_()
    load_balancing_loss(probs_MN, fraction_N, weight_M).backward()
    assert fraction_N.grad is None and weight_M.grad is None
    # dL/dp = N f w, the same for every token.
    expected_MN = (8 * fraction_N.detach() / 24).expand(24, 8)
    torch.testing.assert_close(probs_MN.grad, expected_MN)


def test_load_balancing_loss_gradient_equals_finite_differences():
    probs_MN, experts_MK, weight_M = make_batch(num_tokens=4)
    fraction_N = expert_fractions(experts_MK, 8, torch.ones(4, dtype=torch.bool)).double()
    probs_MN = probs_MN.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda probs: load_balancing_loss(probs, fraction_N, weight_M.double()), probs_MN)


def test_load_balancing_loss_gives_nothing_to_padding():
    probs_MN, experts_MK, _ = make_batch(num_tokens=6)
    is_token_M = torch.tensor([True, True, False, True, True, False])
    fraction_N = expert_fractions(experts_MK, 8, is_token_M)
    load_balancing_loss(probs_MN, fraction_N, is_token_M / is_token_M.sum()).backward()
    assert (probs_MN.grad[~is_token_M] == 0).all() and (probs_MN.grad[is_token_M] != 0).any()


def test_load_balancing_loss_is_the_same_in_micro_batches():
    probs_MN, experts_MK, weight_M = make_batch()
    fraction_N = expert_fractions(experts_MK, 8, torch.ones(24, dtype=torch.bool))
    whole = load_balancing_loss(probs_MN, fraction_N, weight_M)
    (gradient_MN,) = torch.autograd.grad(whole, probs_MN)
    parts = [load_balancing_loss(probs_MN[rows], fraction_N, weight_M[rows]) for rows in (slice(0, 5), slice(5, 24))]
    sum(parts).backward()
    assert torch.equal(probs_MN.grad, gradient_MN)
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-6)
