import math
from typing import get_args

import pytest
import torch

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.losses.kl import KlEstimator, kl_estimate

LOGITS_V = torch.tensor([0.3, -0.5, 1.1, 0.0], dtype=torch.float64)
REFERENCE_V = torch.tensor([0.0, 0.4, 0.6, -0.8], dtype=torch.float64)


def test_kl_estimate_by_hand():
    # pi = 0.5, reference = 0.25: rho = 1/2, d = -log 2.
    logprob, reference = torch.tensor(0.5).log(), torch.tensor(0.25).log()
    assert kl_estimate(logprob, reference, "k1").item() == pytest.approx(math.log(2), abs=1e-6)
    assert kl_estimate(logprob, reference, "k2").item() == pytest.approx(math.log(2) ** 2 / 2, abs=1e-6)
    assert kl_estimate(logprob, reference, "k3").item() == pytest.approx(0.5 + math.log(2) - 1, abs=1e-6)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_kl_estimate_is_unbiased(kind):
    # The expectation over all four tokens is exact, so this is an identity, not a statistic.
    logprob_V, reference_V = LOGITS_V.log_softmax(0), REFERENCE_V.log_softmax(0)
    exact = (logprob_V.exp() * (logprob_V - reference_V)).sum()
    expected = (logprob_V.exp() * kl_estimate(logprob_V, reference_V, kind)).sum()
    assert expected.item() == pytest.approx(exact.item(), abs=1e-14)


@pytest.mark.parametrize("kind", get_args(KlEstimator))
def test_kl_estimate_of_equal_policies_is_exactly_zero(kind):
    logprob = torch.tensor([-0.1, -7.3])
    assert (kl_estimate(logprob, logprob.clone(), kind) == 0).all()


def test_k3_is_never_negative_and_keeps_its_digits_near_zero():
    logprob = torch.tensor([-1e-4, -1e-3, -1.0, -5.0])
    assert (kl_estimate(logprob, torch.zeros(4), "k3") > 0).all()
    small = kl_estimate(torch.tensor(-1e-4), torch.tensor(0.0), "k3").item()
    # d^2 / 2 = 5e-9; exp(d) - d - 1 in fp32 gives 0.
    assert small == pytest.approx(0.5e-8, rel=2e-3)


@pytest.mark.parametrize("kind", get_args(KlEstimator))
def test_kl_estimate_gradient_equals_finite_differences(kind):
    reference_V = REFERENCE_V.log_softmax(0)
    logits_V = LOGITS_V.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: kl_estimate(logits.log_softmax(0), reference_V, kind), logits_V)


def test_kl_estimate_gradient_by_hand_and_only_into_the_policy():
    # d k3 / d logprob = 1 - rho.
    logprob = torch.tensor(0.5).log().requires_grad_()
    reference = torch.tensor(0.25).log().requires_grad_()
    kl_estimate(logprob, reference).backward()
    assert logprob.grad.item() == pytest.approx(0.5, abs=1e-6)
    assert reference.grad is None


def test_kl_estimate_refuses_an_unknown_estimator():
    with pytest.raises(ConfigError, match="k4"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")
