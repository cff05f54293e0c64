"""Sinkhorn's plan against its fixed point by hand, its constraints, and Megatron-Core's own; padding; no gradient."""

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import sinkhorn
from torch import Tensor

from megatron_moe_grpo.routing.sinkhorn import sinkhorn_plan, sinkhorn_top_k

MANY = 200
"""Rounds after which nothing moves any more."""


def random_logits(num_tokens: int = 24, num_experts: int = 8, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(num_tokens, num_experts, generator=torch.Generator().manual_seed(0))


def everything(num_tokens: int) -> Tensor:
    return torch.ones(num_tokens, dtype=torch.bool)


def test_sinkhorn_plan_by_hand() -> None:
    # Odds 9 and 1: diag(u) [[9, 1], [1, 1]] diag(v) with rows and columns of 1 is [[a, b], [b, a]], where
    # a^2 / b^2 = (9 * 1) / (1 * 1), which no scaling changes: a = 3/4, b = 1/4.
    plan_MN = sinkhorn_plan(torch.tensor([[9.0, 1.0], [1.0, 1.0]]).log(), everything(2), MANY).exp()
    assert plan_MN.flatten().tolist() == pytest.approx([0.75, 0.25, 0.25, 0.75], abs=1e-6)


def test_sinkhorn_plan_one_round_is_rows_then_columns() -> None:
    # Rows to 1: [.9 .1], [.5 .5]; columns to M/N = 1: divided by 1.4 and .6.
    plan_MN = sinkhorn_plan(torch.tensor([[9.0, 1.0], [1.0, 1.0]]).log(), everything(2), 1).exp()
    assert plan_MN.flatten().tolist() == pytest.approx([0.9 / 1.4, 0.1 / 0.6, 0.5 / 1.4, 0.5 / 0.6], abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_sinkhorn_plan_has_equal_columns_and_rows(scale: float) -> None:
    plan_MN = sinkhorn_plan(random_logits(scale=scale), everything(24), MANY).exp()
    torch.testing.assert_close(plan_MN.sum(0), torch.full((8,), 3.0), atol=1e-5, rtol=0)  # Measured: 5e-7.
    torch.testing.assert_close(plan_MN.sum(1), torch.ones(24), atol=1e-5, rtol=0)  # Measured: 2e-7.


def test_sinkhorn_plan_equals_megatron_core() -> None:
    logits_MN = random_logits()
    oracle_MN = sinkhorn(logits_MN, tol=1e-7) * 24
    plan_MN = sinkhorn_plan(logits_MN, everything(24), MANY).exp()
    torch.testing.assert_close(plan_MN, oracle_MN, atol=1e-5, rtol=0)  # Measured: 2e-7.


def test_sinkhorn_top_k_after_eight_rounds_equals_megatron_core() -> None:
    """At Megatron's own tolerance, on as many tokens as a small micro-batch has: the same experts in the same order."""
    logits_MN = random_logits(256)
    expected_MK = sinkhorn(logits_MN).topk(2).indices
    assert torch.equal(sinkhorn_top_k(logits_MN, everything(256), 8, 2), expected_MK)


def test_sinkhorn_top_k_lowers_the_expert_that_everybody_wants() -> None:
    logits_MN = random_logits(64)
    logits_MN[:, 3] += 3.0
    by_logits = torch.bincount(logits_MN.topk(2).indices.flatten(), minlength=8)
    by_plan = torch.bincount(sinkhorn_top_k(logits_MN, everything(64), 8, 2).flatten(), minlength=8)
    assert by_logits.max() > 55
    assert by_plan.max() < 24 and by_plan.min() > 8


def test_sinkhorn_top_k_does_not_see_padding() -> None:
    logits_MN = random_logits()
    is_real_M = torch.arange(24) % 3 != 0
    poisoned_MN = logits_MN.masked_fill(~is_real_M[:, None], 0.0)
    poisoned_MN[~is_real_M, 0] = 50.0
    got_MK = sinkhorn_top_k(poisoned_MN, is_real_M, 8, 2)
    assert torch.equal(got_MK[is_real_M], sinkhorn_top_k(logits_MN[is_real_M], everything(16), 8, 2))
    # Padding is routed too, to K experts like any token.
    assert got_MK.shape == (24, 2) and (got_MK[:, 0] != got_MK[:, 1]).all()


def test_sinkhorn_top_k_depends_on_the_other_tokens() -> None:
    logits_MN = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    crowded_MN = torch.tensor([[1.0, 0.0], [5.0, 0.0], [5.0, 0.0]])
    assert sinkhorn_top_k(logits_MN, everything(3), 8, 1)[0] == 0
    assert sinkhorn_top_k(crowded_MN, everything(3), 8, 1)[0] == 1


def test_sinkhorn_plan_of_large_logits_stays_finite_and_carries_no_gradient() -> None:
    # exp(200) overflows fp32: the plain algorithm, Megatron's, gives NaN here.
    logits_MN = random_logits(scale=200.0).requires_grad_()
    assert sinkhorn(logits_MN.detach()).isnan().any()
    log_plan_MN = sinkhorn_plan(logits_MN, everything(24), 8)
    assert log_plan_MN.isfinite().all() and not log_plan_MN.requires_grad
