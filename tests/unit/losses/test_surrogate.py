"""The weighted sum over a batch: its metrics, and what it never reads."""

import math

import pytest
import torch

from megatron_moe_grpo.losses.cispo import CappedWeightSurrogate
from megatron_moe_grpo.losses.clipped_surrogate import ClippedSurrogate
from megatron_moe_grpo.losses.sapo import SoftGateSurrogate
from megatron_moe_grpo.losses.surrogate import Surrogate, weighted_surrogate

SURROGATES = (ClippedSurrogate(0.2, 0.2), SoftGateSurrogate(1.0, 1.05), CappedWeightSurrogate(0.2))
every_surrogate = pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda surrogate: type(surrogate).__name__)


@every_surrogate
def test_withheld_is_the_share_of_the_plain_gradient_that_is_missing(surrogate: Surrogate) -> None:
    log_ratio_M = torch.linspace(-3, 3, 401, dtype=torch.float64)
    advantage_M = torch.tensor([1.5, -0.7], dtype=torch.float64)[torch.arange(401) % 2]
    logprob_M = (log_ratio_M - 4).requires_grad_()
    surrogate(logprob_M, torch.full_like(logprob_M, -4), advantage_M).sum().backward()
    let_through_M = logprob_M.grad / (-log_ratio_M.exp() * advantage_M)
    withheld_M = surrogate.withheld(log_ratio_M.exp(), advantage_M).double()
    # Measured 2e-8: SAPO's temperatures are fp32.
    torch.testing.assert_close(withheld_M, 1 - let_through_M, atol=1e-6, rtol=0)
    assert 0 <= withheld_M.min() < 1e-6 and 0.5 < withheld_M.max() <= 1
    assert (surrogate.withheld(log_ratio_M.exp(), torch.zeros(401)) == 0).all()


@every_surrogate
def test_surrogates_compute_bf16_in_fp32(surrogate: Surrogate) -> None:
    logprob, old_logprob = torch.tensor([-1.0078125, -1.0], dtype=torch.bfloat16).split(1)
    loss = surrogate(logprob, old_logprob, torch.tensor([1.0]))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, surrogate(logprob.float(), old_logprob.float(), torch.tensor([1.0])))


@every_surrogate
def test_surrogates_pass_gradient_to_the_new_logprob_only(surrogate: Surrogate) -> None:
    logprob, old_logprob, advantage = (torch.tensor(value, requires_grad=True) for value in (-1.0, -1.1, 0.7))
    surrogate(logprob, old_logprob, advantage).backward()
    assert logprob.grad is not None and old_logprob.grad is None and advantage.grad is None


def test_weighted_surrogate_metrics_by_hand() -> None:
    old_logprob_M = torch.tensor([-1.0, -1.0, -1.0])
    logprob_M = old_logprob_M + torch.tensor([1.5, 0.5, 1.0]).log()
    term = weighted_surrogate(
        logprob_M, old_logprob_M, torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.25, 0.25, 0.5]), SURROGATES[0]
    )
    kl = 0.25 * (0.5 - math.log(1.5)) + 0.25 * (-0.5 - math.log(0.5))
    assert term.loss.item() == pytest.approx(-(0.25 * 1.2 + 0.25 * 0.5 + 0.5), abs=1e-6)
    assert term.metrics["clip_fraction"].item() == 0.25
    assert term.metrics["ratio_mean"].item() == pytest.approx(1.0, abs=1e-6)
    assert term.metrics["approx_kl"].item() == pytest.approx(kl, abs=1e-6)
    assert term.metrics["logprob_gap_max"].item() == pytest.approx(math.log(2), abs=1e-6)


@every_surrogate
@pytest.mark.parametrize("garbage", [float("nan"), float("-inf"), 200.0])
def test_weighted_surrogate_never_reads_elements_without_weight(garbage: float, surrogate: Surrogate) -> None:
    logprob_M = torch.tensor([-1.0, garbage], requires_grad=True)
    term = weighted_surrogate(
        logprob_M, torch.tensor([-1.0, garbage]), torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0]), surrogate
    )
    term.loss.backward()
    # At ratio 1 and A = 2 the gradient is -2 whatever the surrogate.
    assert term.loss.isfinite()
    assert logprob_M.grad.tolist() == [-2.0, 0.0]
    assert all(torch.isfinite(value) for value in term.metrics.values())


@every_surrogate
def test_weighted_surrogate_without_advantage_is_exactly_zero_even_for_an_exploded_ratio(surrogate: Surrogate) -> None:
    # exp(200) overflows to inf, and inf * 0 is NaN.
    logprob_M = torch.tensor([200.0, -1.0], requires_grad=True)
    term = weighted_surrogate(logprob_M, torch.zeros(2), torch.zeros(2), torch.ones(2), surrogate)
    term.loss.backward()
    assert term.loss.item() == 0
    assert (logprob_M.grad == 0).all()
