import math
from itertools import pairwise

import pytest
import torch
from policy_batches import make_policy_batch
from torch import Tensor

from megatron_moe_grpo.losses.kl_loss import kl_loss
from megatron_moe_grpo.losses.token_weights import BatchTotals, token_weights

BATCH = make_policy_batch()
NUM_TOKENS = 32


def term(estimator: str, rows: slice = slice(0, 12), weighting: str = "sequence_mean"):
    """The KL to the old policy of part of the batch."""
    is_response_BT = BATCH.is_response_BT
    weight_BT = token_weights(is_response_BT[rows], weighting, BatchTotals.of(is_response_BT))
    return kl_loss(
        BATCH.logprob_BT[rows], BATCH.old_BT[rows], is_response_BT[rows], weight_BT, NUM_TOKENS, estimator
    )  # fmt: skip


def test_kl_loss_by_hand() -> None:
    # rho = 2: 2 - log 2 - 1; rho = 1: 0; the third token is padding.
    logprob_BT = torch.tensor([[-1.0, -1.0, float("nan")]])
    reference_BT = torch.tensor([[-1.0 + math.log(2), -1.0, float("nan")]])
    is_response_BT = torch.tensor([[True, True, False]])
    found = kl_loss(logprob_BT, reference_BT, is_response_BT, torch.tensor([[0.25, 0.5, 0.0]]), 4.0, "k3")
    assert found.loss.item() == pytest.approx(0.25 * (1 - math.log(2)), abs=1e-7)
    assert found.metrics["kl"].item() == pytest.approx((1 - math.log(2)) / 4, abs=1e-7)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_loss_gradient_is_the_weighted_derivative_of_the_estimator(estimator: str) -> None:
    # With d = log pi - log ref: k1' = 1, k2' = d, k3' = 1 - exp(-d).
    (gradient_BT,) = torch.autograd.grad(term(estimator).loss, BATCH.logprob_BT)
    d_BT: Tensor = (BATCH.logprob_BT - BATCH.old_BT).detach()
    slope_BT = {"k1": torch.ones_like(d_BT), "k2": d_BT, "k3": 1 - (-d_BT).exp()}[estimator]
    expected_BT = token_weights(BATCH.is_response_BT) * slope_BT
    here = BATCH.is_response_BT
    torch.testing.assert_close(gradient_BT[here], expected_BT[here])
    assert (gradient_BT[~here] == 0).all()


@pytest.mark.parametrize("weighting", ["sequence_mean", "token_mean", "constant_length"])
@pytest.mark.parametrize("cuts", [[0, 1, 5, 12], list(range(13))])
def test_kl_loss_of_micro_batches_adds_up(weighting: str, cuts: list[int]) -> None:
    whole = term("k3", weighting=weighting)
    parts = [term("k3", slice(start, stop), weighting) for start, stop in pairwise(cuts)]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), abs=1e-12)
    assert sum(part.metrics["kl"].item() for part in parts) == pytest.approx(whole.metrics["kl"].item(), abs=1e-12)


def test_kl_loss_metric_is_the_mean_over_tokens_whatever_the_weights() -> None:
    here = BATCH.is_response_BT
    log_rho_M = (BATCH.old_BT - BATCH.logprob_BT).detach()[here]
    expected = (log_rho_M.exp() - log_rho_M - 1).mean().item()
    for weighting in ("sequence_mean", "token_mean", "constant_length"):
        assert term("k3", weighting=weighting).metrics["kl"].item() == pytest.approx(expected)
    assert term("k3", weighting="token_mean").loss.item() == pytest.approx(expected)


def test_kl_loss_to_itself_is_exactly_zero() -> None:
    logprob_BT = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    everywhere_BT = torch.ones(1, 2, dtype=torch.bool)
    found = kl_loss(logprob_BT, logprob_BT.detach(), everywhere_BT, token_weights(everywhere_BT), 2.0, "k3")
    found.loss.backward()
    assert found.loss.item() == 0 and (logprob_BT.grad == 0).all()
