import math
from itertools import combinations, permutations
from typing import get_args

import pytest
import torch

from megatron_moe_grpo.config import schema
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.routing.likelihood import SelectionLaw, routing_entropy, selection_logprob
from megatron_moe_grpo.routing.selection import gumbel_noise, gumbel_top_k

LAWS = get_args(SelectionLaw)
LOGITS_N = torch.tensor([0.3, -1.2, 0.9, 0.0, -0.4], dtype=torch.float64)


def test_selection_law_has_the_config_names():
    assert get_args(schema.Likelihood) == LAWS


def test_selection_logprob_by_hand():
    # Probabilities 0.1, 0.2, 0.3, 0.4; the draw is expert 3, then expert 0.
    logits_MN = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    experts_MK = torch.tensor([[3, 0]])
    first_then_second = 0.4 * (0.1 / 0.6)
    second_then_first = 0.1 * (0.4 / 0.9)
    by_hand = {
        "plackett_luce": math.log(first_then_second),
        "set": math.log(first_then_second + second_then_first),
        "product": math.log(0.4 * 0.1),
    }
    for kind, expected in by_hand.items():
        logprob_M = selection_logprob(logits_MN, experts_MK, kind)
        assert logprob_M.dtype == torch.float32
        # Worst case measured 6e-8.
        assert logprob_M.item() == pytest.approx(expected, abs=1e-6)


def test_plackett_luce_sums_to_one_over_all_ordered_outcomes():
    experts_MK = torch.tensor(list(permutations(range(5), 3)))
    probs_M = selection_logprob(LOGITS_N.expand(60, 5), experts_MK, "plackett_luce").exp()
    assert probs_M.sum().item() == pytest.approx(1, abs=1e-12)


def test_plackett_luce_equals_sampled_frequencies():
    num_draws = 40_000
    position_BS = torch.arange(200).expand(200, 200)
    gumbel_MN = gumbel_noise(11, torch.arange(200), torch.tensor([3]), position_BS, 5).reshape(num_draws, 5)
    sampled_MK = gumbel_top_k(LOGITS_N.float().expand(num_draws, 5), gumbel_MN, 3)
    outcomes_MK = torch.tensor(list(permutations(range(5), 3)))
    probs = selection_logprob(LOGITS_N.expand(60, 5), outcomes_MK, "plackett_luce").exp()
    base = torch.tensor([25, 5, 1])
    counts = torch.bincount((sampled_MK * base).sum(1), minlength=125)[(outcomes_MK * base).sum(1)]
    z_scores = (counts - num_draws * probs) / (num_draws * probs * (1 - probs)).sqrt()
    assert counts.sum() == num_draws
    # 60 outcomes: the largest of 60 normal deviates is below 4 in 99.6 % of generators; measured 2.9.
    assert z_scores.abs().max() < 4
    # 59 degrees of freedom: chi-square 59 +- 10.9; measured within one of them.
    assert abs(((counts - num_draws * probs) ** 2 / (num_draws * probs)).sum() - 59) < 4 * 10.9


@pytest.mark.parametrize("num_active", [1, 2, 3, 4])
def test_set_is_the_sum_of_plackett_luce_over_orders(num_active):
    for chosen in combinations(range(5), num_active):
        orders_MK = torch.tensor(list(permutations(chosen)))
        summed = selection_logprob(LOGITS_N.expand(len(orders_MK), 5), orders_MK, "plackett_luce").exp().sum()
        unordered = selection_logprob(LOGITS_N[None], torch.tensor([chosen]), "set").exp()
        assert unordered.item() == pytest.approx(summed.item(), abs=1e-12)


def test_set_sums_to_one_over_all_sets_and_ignores_the_order():
    experts_MK = torch.tensor(list(combinations(range(5), 3)))
    logprob_M = selection_logprob(LOGITS_N.expand(10, 5), experts_MK, "set")
    assert logprob_M.exp().sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(selection_logprob(LOGITS_N.expand(10, 5), experts_MK.flip(1), "set"), logprob_M)


def test_set_refuses_more_than_four_experts():
    with pytest.raises(ConfigError, match="K!"):
        selection_logprob(torch.zeros(1, 8), torch.arange(5)[None], "set")


def test_selection_logprob_refuses_an_unknown_law():
    with pytest.raises(ConfigError, match="Unknown law"):
        selection_logprob(torch.zeros(1, 4), torch.tensor([[0, 1]]), "bernoulli")


@pytest.mark.parametrize("kind", LAWS)
def test_selection_logprob_gradient_equals_finite_differences(kind):
    generator = torch.Generator().manual_seed(0)
    logits_MN = torch.randn(3, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    experts_MK = torch.tensor([[0, 5, 2], [1, 2, 3], [4, 0, 1]])
    assert torch.autograd.gradcheck(lambda logits: selection_logprob(logits, experts_MK, kind), logits_MN)


def test_selection_logprob_gradient_by_hand():
    # One draw: d log p_e / dz = one_hot(e) - p.
    logits_MN = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log().requires_grad_()
    selection_logprob(logits_MN, torch.tensor([[2]]), "plackett_luce").sum().backward()
    torch.testing.assert_close(logits_MN.grad, torch.tensor([[-0.1, -0.2, 0.7, -0.4]]))


@pytest.mark.parametrize("kind", LAWS)
def test_selection_logprob_with_closed_experts_equals_leaving_them_out(kind):
    masked_MN = LOGITS_N.clone()[None]
    masked_MN[0, [1, 3]] = -torch.inf
    masked_MN.requires_grad_()
    reduced_MN = LOGITS_N[[0, 2, 4]][None].clone().requires_grad_()
    masked_M = selection_logprob(masked_MN, torch.tensor([[2, 4]]), kind)
    reduced_M = selection_logprob(reduced_MN, torch.tensor([[1, 2]]), kind)
    assert masked_M.item() == pytest.approx(reduced_M.item(), abs=1e-14)
    masked_M.backward()
    reduced_M.backward()
    assert masked_MN.grad[0, [1, 3]].tolist() == [0, 0]
    torch.testing.assert_close(masked_MN.grad[0, [0, 2, 4]], reduced_MN.grad[0])


@pytest.mark.parametrize("kind", LAWS)
def test_selection_logprob_is_finite_when_exactly_k_experts_are_open(kind):
    logits_MN = torch.tensor([[0.7, -torch.inf, -0.2, -torch.inf]], requires_grad=True)
    logprob_M = selection_logprob(logits_MN, torch.tensor([[2, 0]]), kind)
    logprob_M.sum().backward()
    assert torch.isfinite(logprob_M).all() and torch.isfinite(logits_MN.grad).all()
    if kind == "set":
        # The only possible set is certain: log 1, and nothing to learn.
        assert abs(logprob_M.item()) < 1e-6 and logits_MN.grad.abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["plackett_luce", "set"])
def test_selection_logprob_of_all_experts_at_extreme_logits(kind):
    logits_MN = torch.tensor([[500.0, -500.0, 0.0]], requires_grad=True)
    logprob_M = selection_logprob(logits_MN, torch.tensor([[0, 2, 1]]), kind)
    logprob_M.sum().backward()
    assert logprob_M.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(logits_MN.grad).all()


def test_plackett_luce_keeps_precision_when_one_expert_dominates():
    # log(total - drawn) would be log(0) in fp32: e^30 + e^0 + e^-1 rounds to e^30.
    logprob_M = selection_logprob(torch.tensor([[30.0, 0.0, -1.0]]), torch.tensor([[0, 2]]), "plackett_luce")
    assert logprob_M.item() == pytest.approx(-1 - math.log(1 + math.exp(-1)), abs=1e-6)


def test_selection_logprob_computes_bf16_logits_in_fp32():
    logits_MN = LOGITS_N[None].to(torch.bfloat16)
    experts_MK = torch.tensor([[2, 0]])
    logprob_M = selection_logprob(logits_MN, experts_MK, "plackett_luce")
    assert torch.equal(logprob_M, selection_logprob(logits_MN.float(), experts_MK, "plackett_luce"))


def test_routing_entropy_by_hand_and_with_closed_experts():
    uniform_MN = torch.zeros(1, 8)
    assert routing_entropy(uniform_MN).item() == pytest.approx(math.log(8), abs=1e-6)
    closed_MN = torch.tensor([[1.5, -torch.inf, 1.5, -torch.inf]], requires_grad=True)
    entropy_M = routing_entropy(closed_MN)
    assert entropy_M.item() == pytest.approx(math.log(2), abs=1e-6)
    entropy_M.sum().backward()
    assert torch.isfinite(closed_MN.grad).all() and closed_MN.grad[0, 1] == 0


def test_routing_entropy_of_a_certain_router_is_zero():
    assert routing_entropy(torch.tensor([[1000.0, 0.0, 0.0]])).item() == 0
    assert routing_entropy(torch.tensor([[-torch.inf, 3.0, -torch.inf]])).item() == 0


def test_routing_entropy_gradient_equals_finite_differences():
    logits_MN = LOGITS_N.clone()[None].requires_grad_()
    assert torch.autograd.gradcheck(routing_entropy, logits_MN)
    expected = torch.distributions.Categorical(logits=LOGITS_N).entropy()
    assert routing_entropy(logits_MN).item() == pytest.approx(expected.item(), abs=1e-12)
