import math

import pytest
import torch
from policy_batches import make_policy_batch, settings

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.losses.cispo import CappedWeightSurrogate, cispo

CAPPED = CappedWeightSurrogate(epsilon_high=0.2)

# ratio, advantage, weight by hand: min(r, 1.2) whatever the advantage
CASES = [(1.0, 2.0, 1.0), (1.1, 2.0, 1.1), (1.5, 2.0, 1.2), (1.5, -2.0, 1.2), (0.1, 2.0, 0.1), (0.1, -2.0, 0.1)]


@pytest.mark.parametrize(("ratio", "advantage", "weight"), CASES)
def test_capped_weight_by_hand(ratio: float, advantage: float, weight: float) -> None:
    old_logprob = torch.tensor(-1.3)
    logprob = (old_logprob + math.log(ratio)).requires_grad_()
    loss = CAPPED(logprob, old_logprob, torch.tensor(advantage))
    loss.backward()
    # Worst case measured 2e-7.
    assert loss.item() == pytest.approx(-weight * advantage * (math.log(ratio) - 1.3), abs=2e-6)
    assert logprob.grad.item() == pytest.approx(-weight * advantage, abs=2e-6)
    assert CAPPED.withheld(torch.tensor(ratio), torch.tensor(advantage)).item() == pytest.approx(1 - weight / ratio)


def test_capped_weight_never_silences_an_element() -> None:
    logprob_M = torch.linspace(-3, 3, 60).requires_grad_()
    for sign in (1.0, -1.0):
        (gradient_M,) = torch.autograd.grad(
            CAPPED(logprob_M, torch.zeros(60), torch.full((60,), sign)).sum(), logprob_M
        )
        assert (gradient_M * sign < 0).all()


def test_cispo_gradient_is_that_of_likelihood_under_constant_weights() -> None:
    # The oracle: autograd of sum(constant * log pi) / tokens, the constants written down apart.
    batch = make_policy_batch()
    here = batch.is_response_BT
    ratio_BT = (batch.logprob_BT - batch.old_BT).detach().exp()
    constant_BT = torch.minimum(ratio_BT, torch.tensor(1.2)) * batch.advantage_B[:, None]
    likelihood = -(constant_BT * batch.logprob_BT)[here].sum() / int(here.sum())
    (expected_BT,) = torch.autograd.grad(likelihood, batch.logprob_BT)
    gradient_BT = batch.gradient_BT(settings("cispo"))
    torch.testing.assert_close(gradient_BT[here], expected_BT[here], atol=1e-8, rtol=1e-6)
    assert (ratio_BT[here] > 1.2).sum() > 3


def test_capped_weight_of_an_exploded_ratio_is_the_cap() -> None:
    logprob = torch.tensor(200.0, requires_grad=True)
    CAPPED(logprob, torch.tensor(0.0), torch.tensor(1.0)).backward()
    assert logprob.grad.item() == pytest.approx(-1.2)
    assert CAPPED.withheld(torch.tensor(float("inf")), torch.tensor(1.0)).item() == 1.0


def test_cispo_takes_its_cap_from_the_settings() -> None:
    assert cispo(LossConfig()).token == cispo(LossConfig()).gate == CAPPED
    assert cispo(LossConfig(clip_epsilon_high=4.0)).token.epsilon_high == 4.0
