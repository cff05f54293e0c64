import math

import pytest
import torch

from megatron_moe_grpo.losses.clipped_surrogate import ClippedSurrogate
from megatron_moe_grpo.losses.surrogate import ratio_of

CLIPPED = ClippedSurrogate(0.2, 0.2)

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
    value = CLIPPED(logprob, old_logprob, torch.tensor(advantage))
    value.backward()
    # Worst case measured 1e-7.
    assert value.item() == pytest.approx(loss, abs=2e-6)
    assert logprob.grad.item() == pytest.approx(gradient, abs=2e-6)
    assert ratio_of(logprob, old_logprob).item() == pytest.approx(ratio, abs=2e-6)
    assert CLIPPED.withheld(torch.tensor(ratio), torch.tensor(advantage)).item() == float(is_clipped)


def test_clipped_surrogate_gradient_is_exactly_zero_where_clipped():
    old_logprob_M = torch.full((400,), -2.0)
    logprob_M = (old_logprob_M + torch.linspace(-1, 1, 400)).requires_grad_()
    advantage_M = torch.tensor([1.0, -1.0]).repeat(200)
    CLIPPED(logprob_M, old_logprob_M, advantage_M).sum().backward()
    is_clipped_M = CLIPPED.withheld(ratio_of(logprob_M.detach(), old_logprob_M), advantage_M).bool()
    assert 0 < is_clipped_M.sum() < 400
    assert torch.equal(logprob_M.grad == 0, is_clipped_M)


def test_clipped_surrogate_gradient_reaches_only_the_new_logprob():
    logprob, old_logprob, advantage = (torch.tensor(value, requires_grad=True) for value in (-1.0, -1.1, 0.7))
    CLIPPED(logprob, old_logprob, advantage).backward()
    assert logprob.grad is not None and old_logprob.grad is None and advantage.grad is None


def test_clipped_surrogate_gradient_equals_finite_differences():
    generator = torch.Generator().manual_seed(0)
    logprob_BT = torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    old_logprob_BT = logprob_BT.detach() + 0.3 * torch.randn(4, 3, dtype=torch.float64, generator=generator)
    advantage_B1 = torch.tensor([[1.0], [-0.5], [0.0], [2.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: CLIPPED(x, old_logprob_BT, advantage_B1), logprob_BT)


def test_clipped_surrogate_computes_bf16_in_fp32():
    logprob = torch.tensor([-1.0078125], dtype=torch.bfloat16)
    old_logprob = torch.tensor([-1.0], dtype=torch.bfloat16)
    loss = CLIPPED(logprob, old_logprob, torch.tensor([1.0]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-math.exp(-0.0078125), abs=1e-7)
