"""What holds for every RL method: policy gradient on the first update, exact under any split, padding never read."""

from itertools import pairwise
from typing import get_args

import pytest
import torch
from policy_batches import PolicyBatch, make_policy_batch, settings

from megatron_moe_grpo.config.schema import LossConfig, RlMethod
from megatron_moe_grpo.losses.gate_grpo import gate_grpo_loss
from megatron_moe_grpo.losses.objective import RL_METHODS, objective_of
from megatron_moe_grpo.losses.token_weights import token_weights

METHODS = get_args(RlMethod)
every_method = pytest.mark.parametrize("method", METHODS)


def at_kinks(batch: PolicyBatch) -> bool:
    """True where a finite difference would straddle a clip."""
    ratio_BT = (batch.logprob_BT - batch.old_BT).detach().exp()[batch.is_response_BT]
    edges = torch.tensor([0.8, 1.2, 1.28], dtype=torch.float64)
    return bool(((ratio_BT[:, None] - edges).abs() < 1e-4).any())


def test_every_method_of_the_settings_has_an_objective_of_its_name() -> None:
    assert tuple(RL_METHODS) == METHODS
    assert [objective_of(settings(method)).name for method in METHODS] == list(METHODS)


@every_method
def test_the_first_update_is_policy_gradient_under_the_methods_weights(method: RlMethod) -> None:
    batch = make_policy_batch(spread=0.0)
    weight_BT = token_weights(batch.is_response_BT, objective_of(settings(method)).weighting)
    expected_BT = -weight_BT * batch.advantage_B[:, None]
    # Measured 1e-9: the weights are fp32.
    torch.testing.assert_close(batch.gradient_BT(settings(method)), expected_BT, atol=1e-7, rtol=0)
    assert batch.loss(settings(method)).metrics["clip_fraction"] == 0


@every_method
def test_gates_first_update_is_policy_gradient_under_equation_5s_weights(method: RlMethod) -> None:
    logprob_BTL = -torch.rand(4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.1
    logprob_BTL.requires_grad_()
    is_response_BT = torch.tensor([[True] * length + [False] * (3 - length) for length in (3, 1, 2, 0)])
    advantage_B = torch.tensor([1.0, -0.5, 0.3, 2.0], dtype=torch.float64)
    surrogate = objective_of(settings(method)).gate
    gate_grpo_loss(logprob_BTL, logprob_BTL.detach(), advantage_B, is_response_BT, surrogate).loss.backward()
    lengths_B = torch.tensor([3, 1, 2, 1])
    expected_BT = is_response_BT * (-advantage_B / (2 * lengths_B * 4))[:, None]
    torch.testing.assert_close(logprob_BTL.grad, expected_BT[..., None].expand(4, 3, 2), atol=1e-7, rtol=0)


# CISPO's weight has no gradient on purpose: test_cispo.py compares with autograd instead.
@pytest.mark.parametrize("method", [method for method in METHODS if method != "cispo"])
def test_gradients_equal_finite_differences(method: RlMethod) -> None:
    batch = make_policy_batch()
    assert not at_kinks(batch)
    gradient_BT, losses, step = batch.gradient_BT(settings(method)), settings(method), 1e-6
    for i, t in batch.is_response_BT.nonzero().tolist():
        sides = []
        for sign in (1, -1):
            moved_BT = batch.logprob_BT.detach().clone()
            moved_BT[i, t] += sign * step
            moved = PolicyBatch(moved_BT, batch.old_BT, batch.advantage_B, batch.is_response_BT)
            sides.append(float(moved.loss(losses).loss))
        # Measured 2e-11.
        assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(float(gradient_BT[i, t]), abs=1e-8)


@every_method
@pytest.mark.parametrize("cuts", [[0, 6, 12], [0, 1, 5, 12], list(range(13))])
def test_micro_batches_add_up_to_the_whole(method: RlMethod, cuts: list[int]) -> None:
    batch, losses = make_policy_batch(), settings(method)
    whole, gradient_BT = batch.loss(losses), batch.gradient_BT(losses)
    parts = [batch.loss(losses, start, stop) for start, stop in pairwise(cuts)]
    for part in parts:
        part.loss.backward()
    # The gradient of a sequence does not know its neighbours: bitwise.  Sums change order: measured 6e-17.
    assert torch.equal(batch.logprob_BT.grad, gradient_BT)
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), abs=1e-12)
    for name in ("clip_fraction", "ratio_mean"):
        assert sum(part.metrics[name].item() for part in parts) == pytest.approx(whole.metrics[name].item(), abs=1e-6)


@every_method
def test_padding_is_never_read_and_groups_without_signal_give_nothing(method: RlMethod) -> None:
    batch, other = make_policy_batch(), make_policy_batch(padding=7.0)
    gradient_BT = batch.gradient_BT(settings(method))
    assert torch.equal(gradient_BT, other.gradient_BT(settings(method)))
    assert torch.equal(batch.loss(settings(method)).loss, other.loss(settings(method)).loss)
    assert (gradient_BT[:4] == 0).all() and (gradient_BT[~batch.is_response_BT] == 0).all()
    if method != "gspo":  # Its narrow region is left by nearly every sequence here: test_gspo.py.
        assert (gradient_BT[4:][batch.is_response_BT[4:]] != 0).sum() > 10


@every_method
def test_a_given_upper_width_holds_for_tokens_and_gates(method: RlMethod) -> None:
    objective = objective_of(settings(method, clip_epsilon=0.1, clip_epsilon_high=0.5))
    ratio, advantage = torch.tensor([1.49, 1.51, 0.91, 0.89]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    limits = {"sapo": None, "cispo": [False, True, False, False]}.get(method, [False, True, False, True])
    for surrogate in (objective.token, objective.gate):
        assert limits is None or (surrogate.withheld(ratio, advantage) > 0).tolist() == limits


def test_methods_differ_in_what_the_table_says() -> None:
    objectives = [objective_of(LossConfig(rl_method=method)) for method in METHODS]
    assert [o.ratio for o in objectives] == ["token"] * 3 + ["sequence"] + ["token"] * 2
    by_sequence, over_batch = "sequence_mean", "token_mean"
    assert [o.weighting for o in objectives] == [
        by_sequence, "constant_length", over_batch, by_sequence, by_sequence, over_batch,
    ]  # fmt: skip
    assert [o.divides_by_std for o in objectives] == [True, False, True, True, True, True]
