import math

import pytest
import torch

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.losses.clipped_surrogate import ClippedSurrogate
from megatron_moe_grpo.losses.sapo import SoftGateSurrogate, sapo

SOFT = SoftGateSurrogate(temperature_positive=1.0, temperature_negative=1.05)


@pytest.mark.parametrize(("ratio", "advantage", "tau"), [(1.5, 2.0, 1.0), (0.5, 2.0, 1.0), (1.5, -2.0, 1.05)])
def test_soft_gate_by_hand(ratio: float, advantage: float, tau: float) -> None:
    logprob = torch.tensor(math.log(ratio), dtype=torch.float64, requires_grad=True)
    loss = SOFT(logprob, torch.zeros((), dtype=torch.float64), torch.tensor(advantage, dtype=torch.float64))
    loss.backward()
    p = 1 / (1 + math.exp(-tau * (ratio - 1)))
    # The temperatures are fp32: measured 3e-7.
    assert loss.item() == pytest.approx(-4 / tau * p * advantage, abs=1e-6)
    assert logprob.grad.item() == pytest.approx(-4 * p * (1 - p) * ratio * advantage, abs=1e-6)


def test_soft_gate_number_by_hand() -> None:
    # tau 1, r = 1 + ln 3: sigmoid(ln 3) = 3/4, so f = 3 and f' = 4 * 3/4 * 1/4 = 3/4: a quarter is withheld.
    logprob = torch.tensor(math.log(1 + math.log(3)))
    assert SOFT(logprob, torch.tensor(0.0), torch.tensor(1.0)).item() == pytest.approx(-3.0, abs=1e-6)
    assert SOFT.withheld(logprob.exp(), torch.tensor(1.0)).item() == pytest.approx(0.25, abs=1e-6)


def test_soft_gate_gradient_is_largest_at_ratio_one_and_never_zero() -> None:
    ratio_M = torch.linspace(0.05, 4, 80, dtype=torch.float64)
    for sign in (1.0, -1.0):
        logprob_M = ratio_M.log().requires_grad_()
        SOFT(logprob_M, torch.zeros_like(ratio_M), torch.full_like(ratio_M, sign)).sum().backward()
        slope_M = (logprob_M.grad / (-sign * ratio_M)).abs()
        assert (logprob_M.grad != 0).all()
        assert abs(ratio_M[slope_M.argmax()].item() - 1) < 0.05 and slope_M.max() <= 1 + 1e-6


def test_soft_gate_lets_go_of_negative_advantages_sooner() -> None:
    ratio_M = torch.tensor([0.3, 0.7, 1.5, 3.0])
    assert (SOFT.withheld(ratio_M, -torch.ones(4)) > SOFT.withheld(ratio_M, torch.ones(4))).all()


def test_soft_gate_of_an_exploded_ratio_has_no_gradient_and_is_finite() -> None:
    logprob_M = torch.tensor([200.0, 200.0, -200.0], requires_grad=True)
    loss_M = SOFT(logprob_M, torch.zeros(3), torch.tensor([1.0, -1.0, 1.0]))
    loss_M.sum().backward()
    assert loss_M.isfinite().all() and logprob_M.grad.tolist() == [0.0, 0.0, 0.0]


def test_soft_gate_of_a_small_temperature_is_the_surrogate_without_clip() -> None:
    # f(r) - f(1) -> r - 1: plain importance-weighted policy gradient.
    soft, open_wide = SoftGateSurrogate(1e-3, 1e-3), ClippedSurrogate(1.0, 1e6)
    gradients = []
    for surrogate in (soft, open_wide):
        logprob_M = torch.tensor([-0.5, 0.0, 0.8], dtype=torch.float64, requires_grad=True)
        surrogate(logprob_M, torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, -2.0, 1.0])).sum().backward()
        gradients.append(logprob_M.grad)
    # Second order in tau: measured 9e-7.
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=0)


def test_sapo_takes_its_temperatures_from_the_settings() -> None:
    objective = sapo(LossConfig(sapo_temperature_positive=2.0, sapo_temperature_negative=3.0))
    assert objective.token == objective.gate == SoftGateSurrogate(2.0, 3.0)
