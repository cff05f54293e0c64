import math

import pytest
import torch

from megatron_moe_grpo.losses.clipped_surrogate import clipped_surrogate, surrogate_stats, weighted_surrogate

EPSILON = 0.2

# ratio, advantage, loss by hand, gradient with respect to logprob (-r A unless clipped), clipped
CASES = [
    (1.0, 2.0, -2.0, -2.0, False),
    (1.1, 2.0, -2.2, -2.2, False),
    (1.5, 2.0, -2.4, 0.0, True),
    (0.5, 2.0, -1.0, -1.0, False),
    (1.5, -2.0, 3.0, 3.0, False),
    (0.5, -2.0, 1.6, 0.0, True),
    (0.9, -2.0, 1.8, 1.8, False),
    (1.5, 0.0, 0.0, 0.0, False),
]


@pytest.mark.parametrize("ratio, advantage, loss, gradient, is_clipped", CASES)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, gradient, is_clipped):
    old_logprob = torch.tensor(-1.3)
    logprob = (old_logprob + math.log(ratio)).requires_grad_()
    value = clipped_surrogate(logprob, old_logprob, torch.tensor(advantage), EPSILON)
    value.backward()
    # Worst case measured 1e-7.
    assert value.item() == pytest.approx(loss, abs=2e-6)
    assert logprob.grad.item() == pytest.approx(gradient, abs=2e-6)
    stats = surrogate_stats(logprob, old_logprob, torch.tensor(advantage), EPSILON)
    assert stats.ratio.item() == pytest.approx(ratio, abs=2e-6)
    assert stats.is_clipped.item() is is_clipped
    assert not stats.ratio.requires_grad


def test_clipped_surrogate_gradient_is_exactly_zero_where_clipped():
    old_logprob_M = torch.full((400,), -2.0)
    logprob_M = (old_logprob_M + torch.linspace(-1, 1, 400)).requires_grad_()
    advantage_M = torch.tensor([1.0, -1.0]).repeat(200)
    clipped_surrogate(logprob_M, old_logprob_M, advantage_M, EPSILON).sum().backward()
    is_clipped_M = surrogate_stats(logprob_M, old_logprob_M, advantage_M, EPSILON).is_clipped
    assert 0 < is_clipped_M.sum() < 400
    assert torch.equal(logprob_M.grad == 0, is_clipped_M)


def test_clipped_surrogate_gradient_reaches_only_the_new_logprob():
    logprob, old_logprob, advantage = (torch.tensor(value, requires_grad=True) for value in (-1.0, -1.1, 0.7))
    clipped_surrogate(logprob, old_logprob, advantage, EPSILON).backward()
    assert logprob.grad is not None and old_logprob.grad is None and advantage.grad is None


def test_clipped_surrogate_gradient_equals_finite_differences():
    generator = torch.Generator().manual_seed(0)
    logprob_BT = torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    old_logprob_BT = logprob_BT.detach() + 0.3 * torch.randn(4, 3, dtype=torch.float64, generator=generator)
    advantage_B1 = torch.tensor([[1.0], [-0.5], [0.0], [2.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: clipped_surrogate(x, old_logprob_BT, advantage_B1, EPSILON), logprob_BT)


def test_clipped_surrogate_computes_bf16_in_fp32():
    logprob = torch.tensor([-1.0078125], dtype=torch.bfloat16)
    old_logprob = torch.tensor([-1.0], dtype=torch.bfloat16)
    loss = clipped_surrogate(logprob, old_logprob, torch.tensor([1.0]), EPSILON)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-math.exp(-0.0078125), abs=1e-7)


def test_weighted_surrogate_metrics_by_hand():
    old_logprob_M = torch.tensor([-1.0, -1.0, -1.0])
    logprob_M = old_logprob_M + torch.tensor([1.5, 0.5, 1.0]).log()
    term = weighted_surrogate(
        logprob_M, old_logprob_M, torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.25, 0.25, 0.5]), EPSILON
    )
    kl = 0.25 * (0.5 - math.log(1.5)) + 0.25 * (-0.5 - math.log(0.5))
    assert term.loss.item() == pytest.approx(-(0.25 * 1.2 + 0.25 * 0.5 + 0.5), abs=1e-6)
    assert term.metrics["clip_fraction"].item() == 0.25
    assert term.metrics["ratio_mean"].item() == pytest.approx(1.0, abs=1e-6)
    assert term.metrics["approx_kl"].item() == pytest.approx(kl, abs=1e-6)
    assert term.metrics["logprob_gap_max"].item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("garbage", [float("nan"), float("-inf"), 200.0])
def test_weighted_surrogate_never_reads_elements_without_weight(garbage):
    logprob_M = torch.tensor([-1.0, garbage], requires_grad=True)
    term = weighted_surrogate(
        logprob_M, torch.tensor([-1.0, garbage]), torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0]), EPSILON
    )
    term.loss.backward()
    assert term.loss.item() == -2.0
    assert logprob_M.grad.tolist() == [-2.0, 0.0]
    assert all(torch.isfinite(value) for value in term.metrics.values())


def test_weighted_surrogate_without_advantage_is_exactly_zero_even_for_an_exploded_ratio():
    # exp(200) overflows to inf, and inf * 0 is NaN.
    logprob_M = torch.tensor([200.0, -1.0], requires_grad=True)
    term = weighted_surrogate(logprob_M, torch.zeros(2), torch.zeros(2), torch.ones(2), EPSILON)
    term.loss.backward()
    assert term.loss.item() == 0
    assert logprob_M.grad.tolist() == [0.0, 0.0]
