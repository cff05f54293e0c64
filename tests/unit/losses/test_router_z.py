import math

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import z_loss_func

from megatron_moe_grpo.losses.router_z import router_z_loss


def random_logits(num_tokens: int = 24) -> torch.Tensor:
    return torch.randn(num_tokens, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_router_z_loss_by_hand() -> None:
    # Sums of exponentials 8 and e: (1/4) (ln 8)^2 + (3/4) 1^2.
    logits_MN = torch.tensor([[3.0, 5.0], [math.e / 2, math.e / 2]]).log()
    loss = router_z_loss(logits_MN, torch.tensor([0.25, 0.75]))
    assert loss.item() == pytest.approx(0.25 * math.log(8) ** 2 + 0.75, abs=1e-6)


def test_router_z_loss_of_log_probabilities_is_zero() -> None:
    logits_MN = random_logits().log_softmax(dim=1)
    assert router_z_loss(logits_MN, torch.full((24,), 1 / 24)).item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("num_padded", [0, 5])
def test_router_z_loss_equals_megatron_core(num_padded: int) -> None:
    logits_MN = random_logits()
    is_padding_M = torch.arange(24) < num_padded
    loss = router_z_loss(logits_MN, ~is_padding_M / (24 - num_padded))
    (gradient_MN,) = torch.autograd.grad(loss, logits_MN)
    oracle = z_loss_func(logits_MN, 1.0, is_padding_M)
    (expected_MN,) = torch.autograd.grad(oracle, logits_MN)
    torch.testing.assert_close(loss, oracle, atol=1e-6, rtol=0)  # Measured: 5e-7.
    torch.testing.assert_close(gradient_MN, expected_MN, atol=1e-7, rtol=0)  # Measured: 0.
    assert (gradient_MN[is_padding_M] == 0).all() and (gradient_MN[~is_padding_M] != 0).any(dim=1).all()


def test_router_z_loss_gradient_flows_through_the_logits_alone() -> None:
    logits_MN = random_logits(4)
    weight_M = torch.full((4,), 0.25, requires_grad=True)
    router_z_loss(logits_MN, weight_M).backward()
    assert weight_M.grad is None
    # dL/dz = 2 w logsumexp(z) softmax(z).
    expected_MN = 2 * 0.25 * logits_MN.logsumexp(1, keepdim=True) * logits_MN.softmax(1)
    torch.testing.assert_close(logits_MN.grad, expected_MN.detach())


def test_router_z_loss_is_the_same_in_micro_batches() -> None:
    logits_MN, weight_M = random_logits(), torch.full((24,), 1 / 24)
    whole = router_z_loss(logits_MN, weight_M)
    parts = [router_z_loss(logits_MN[rows], weight_M[rows]) for rows in (slice(0, 5), slice(5, 24))]
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-6)


def test_router_z_loss_gives_nothing_where_nothing_is_counted() -> None:
    logits_MN = random_logits(4)
    loss = router_z_loss(logits_MN, torch.zeros(4))
    loss.backward()
    assert loss.item() == 0 and (logits_MN.grad == 0).all()
