"""Expert Choice: what each expert takes, by hand and by Python's own sort; weights, their gradient, empty tokens."""

import math

import pytest
import torch
from torch import Tensor

from megatron_moe_grpo.routing.expert_choice import expert_choice, expert_choice_weights
from megatron_moe_grpo.routing.selection import combination_weights

ALL_4 = torch.ones(4, dtype=torch.bool)


def random_logits(num_tokens: int = 24, num_experts: int = 8) -> Tensor:
    return torch.randn(num_tokens, num_experts, generator=torch.Generator().manual_seed(0))


def test_expert_choice_by_hand() -> None:
    # Scores of expert 0: .9 .8 .6 .1, of expert 1: .1 .2 .4 .9.  K = 1 of N = 2, so C = 4 * 1 / 2 = 2 tokens each.
    logits_MN = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.1, 0.9]]).log()
    assert expert_choice(logits_MN, ALL_4, 1).tolist() == [[True, False], [True, False], [False, True], [False, True]]


def test_expert_choice_compares_softmax_scores_not_logits() -> None:
    # Token 0 has the largest logit for expert 0, but the other token is surer of it.
    logits_MN = torch.tensor([[9.0, 9.0], [1.0, 0.0]])
    assert expert_choice(logits_MN, torch.ones(2, dtype=torch.bool), 1).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(("num_tokens", "num_active", "capacity"), [(24, 2, 6), (23, 2, 5), (24, 8, 24), (3, 2, 1)])
def test_expert_choice_gives_every_expert_the_same_load(num_tokens: int, num_active: int, capacity: int) -> None:
    logits_MN = random_logits(num_tokens)
    map_MN = expert_choice(logits_MN, torch.ones(num_tokens, dtype=torch.bool), num_active)
    assert map_MN.sum(dim=0).tolist() == [capacity] * 8
    scores_MN = logits_MN.softmax(dim=1).tolist()
    for expert in range(8):
        best_first = sorted(range(num_tokens), key=lambda token: -scores_MN[token][expert])
        assert map_MN[:, expert].nonzero().flatten().tolist() == sorted(best_first[:capacity])


def test_expert_choice_leaves_tokens_without_and_others_with_all_experts() -> None:
    # Token 2 is lukewarm about everything.
    logits_MN = torch.tensor([[2.0, 2.0, -2.0], [-2.0, -1.9, 3.0], [0.0, 0.1, 0.0]])
    map_MN = expert_choice(logits_MN, torch.ones(3, dtype=torch.bool), 1)
    assert map_MN.sum(dim=1).tolist() == [2, 1, 0]


def test_expert_choice_never_takes_padding_and_does_not_count_it() -> None:
    logits_MN = random_logits()
    is_real_M = torch.arange(24) % 3 != 0
    poisoned_MN = logits_MN.masked_fill(~is_real_M[:, None], 0.0)
    poisoned_MN[~is_real_M, 0] = 50.0
    map_MN = expert_choice(poisoned_MN, is_real_M, 2)
    assert not map_MN[~is_real_M].any()
    assert torch.equal(map_MN[is_real_M], expert_choice(logits_MN[is_real_M], torch.ones(16, dtype=torch.bool), 2))


def test_expert_choice_takes_nothing_where_everything_is_padding() -> None:
    assert not expert_choice(random_logits(4), torch.zeros(4, dtype=torch.bool), 2).any()


def test_expert_choice_breaks_ties_by_position() -> None:
    # Short columns come out in order even of a sort that does not promise it.
    map_MN = expert_choice(torch.zeros(2000, 2), torch.ones(2000, dtype=torch.bool), 1)
    assert map_MN[:1000].all() and not map_MN[1000:].any()


def test_expert_choice_is_not_causal() -> None:
    """The reason why it cannot decode: a later token takes an earlier one's expert away."""
    logits_MN = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    later_MN = torch.tensor([[1.0, 0.0], [5.0, 0.0]])
    is_real_M = torch.ones(2, dtype=torch.bool)
    assert expert_choice(logits_MN, is_real_M, 1)[0, 0] and not expert_choice(later_MN, is_real_M, 1)[0, 0]


def test_expert_choice_weights_by_hand() -> None:
    logits_MN = torch.tensor([[1.0, 3.0, 4.0], [0.0, 0.0, 0.0]]).log()
    logits_MN[1] = 0.0
    map_MN = torch.tensor([[False, True, True], [False, False, False]])
    plain_MN = expert_choice_weights(logits_MN, map_MN, renormalise=False)
    assert plain_MN.flatten().tolist() == pytest.approx([0, 3 / 8, 4 / 8, 0, 0, 0], abs=1e-7)
    renormalised_MN = expert_choice_weights(logits_MN, map_MN, renormalise=True)
    assert renormalised_MN.flatten().tolist() == pytest.approx([0, 3 / 7, 4 / 7, 0, 0, 0], abs=1e-7)


@pytest.mark.parametrize("renormalise", [False, True])
def test_expert_choice_weights_equal_those_of_k_experts(renormalise: bool) -> None:
    logits_MN = random_logits()
    experts_MK = logits_MN.topk(2).indices
    map_MN = torch.zeros(24, 8, dtype=torch.bool).scatter(1, experts_MK, True)
    weights_MK = combination_weights(logits_MN, experts_MK, renormalise=renormalise)
    got_MN = expert_choice_weights(logits_MN, map_MN, renormalise=renormalise)
    torch.testing.assert_close(got_MN.gather(1, experts_MK), weights_MK, atol=1e-7, rtol=0)  # Measured: 0.


@pytest.mark.parametrize("renormalise", [False, True])
def test_expert_choice_weights_have_the_gradient_of_finite_differences(renormalise: bool) -> None:
    logits_MN = random_logits(5, 4).double().requires_grad_()
    map_MN = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda z: expert_choice_weights(z, map_MN, renormalise=renormalise), logits_MN)
    (gradient_MN,) = torch.autograd.grad(
        expert_choice_weights(logits_MN, map_MN, renormalise=renormalise).square().sum(), logits_MN
    )
    assert torch.equal(gradient_MN[1], torch.zeros(4, dtype=torch.float64))


def test_expert_choice_weights_survive_an_expert_of_vanishing_score() -> None:
    logits_MN = torch.tensor([[200.0, 0.0]], requires_grad=True)
    probs_MN = expert_choice_weights(logits_MN, torch.tensor([[False, True]]), renormalise=True)
    probs_MN.sum().backward()
    assert probs_MN.tolist() == [[0.0, 1.0]] and all(map(math.isfinite, logits_MN.grad.flatten().tolist()))
