from itertools import pairwise

import pytest
import torch

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.losses.clipped_surrogate import ClippedSurrogate
from megatron_moe_grpo.losses.gate_grpo import (
    gate_grpo_layer_loss,
    gate_grpo_loss,
    gate_position_weights,
    gate_positions,
)
from megatron_moe_grpo.losses.objective import objective_of
from megatron_moe_grpo.losses.token_grpo import token_grpo_loss
from megatron_moe_grpo.routing.likelihood import selection_logprob

CLIPPED = ClippedSurrogate(0.2, 0.2)


def make_batch(num_sequences: int = 8, num_steps: int = 4, num_layers: int = 3):
    """Responses of 1..T tokens, ratios around 1, the first four rollouts without signal."""
    generator = torch.Generator().manual_seed(0)
    length_B = torch.randint(1, num_steps + 1, (num_sequences,), generator=generator)
    is_response_BT = torch.arange(num_steps) < length_B[:, None]
    old_BTL = -3 * torch.rand(num_sequences, num_steps, num_layers, generator=generator)
    logprob_BTL = old_BTL + 0.3 * torch.randn(num_sequences, num_steps, num_layers, generator=generator)
    advantage_B = torch.randn(num_sequences, generator=generator)
    advantage_B[:4] = 0
    return logprob_BTL.requires_grad_(), old_BTL, advantage_B, is_response_BT


def bools(*rows: str) -> torch.Tensor:
    """'..x' -> [[False, False, True]]."""
    return torch.tensor([[mark == "x" for mark in row] for row in rows])


# Left-padded: three prompt tokens and two response tokens; five prompt tokens and one response token; no response.
IS_TOKEN_BS = bools(".xxxxx.", "xxxxxx.", "..xxx..")
IS_RESPONSE_BS = bools("....xx.", ".....x.", ".......")


def test_gate_positions_of_the_response_are_the_positions_before_each_token():
    expected_BS = bools("...xx..", "....x..", ".......")
    assert torch.equal(gate_positions(IS_RESPONSE_BS, IS_TOKEN_BS, "response"), expected_BS)


def test_gate_positions_all_end_where_the_last_token_was_produced():
    expected_BS = bools(".xxxx..", "xxxxx..", ".......")
    assert torch.equal(gate_positions(IS_RESPONSE_BS, IS_TOKEN_BS, "all"), expected_BS)


def test_gate_positions_refuse_another_word():
    with pytest.raises(ConfigError, match="prompt"):
        gate_positions(IS_RESPONSE_BS, IS_TOKEN_BS, "prompt")


def test_gate_position_weights_by_hand():
    weight_BS = gate_position_weights(bools("..xx", ".xxx", "...."), num_layers=2)
    sixth = 1 / 6
    expected_BS = torch.tensor([[0, 0, 0.25, 0.25], [0, sixth, sixth, sixth], [0, 0, 0, 0]])
    torch.testing.assert_close(weight_BS, expected_BS)


def test_gate_grpo_loss_by_hand():
    # One rollout, one step, two layers, A = 1: ratios 1.5 (clipped to 1.2) and 0.5: mean over layers.
    old_BTL = torch.tensor([[[-1.0, -2.0]]])
    logprob_BTL = old_BTL + torch.tensor([[[1.5, 0.5]]]).log()
    term = gate_grpo_loss(logprob_BTL, old_BTL, torch.tensor([1.0]), torch.tensor([[True]]), CLIPPED)
    assert term.loss.item() == pytest.approx(-(1.2 + 0.5) / 2, abs=1e-6)
    assert term.metrics["clip_fraction"].item() == 0.5
    assert term.metrics["logprob_gap_max"].item() == pytest.approx(0.6931472, abs=1e-6)


def test_gate_grpo_loss_clips_each_layer_by_itself():
    # The product of the two ratios is 1: a joint ratio would not be clipped and layer 0 would keep its gradient.
    old_BTL = torch.zeros(1, 1, 2)
    logprob_BTL = torch.tensor([[[1.5, 1 / 1.5]]]).log().requires_grad_()
    gate_grpo_loss(logprob_BTL, old_BTL, torch.tensor([1.0]), torch.tensor([[True]]), CLIPPED).loss.backward()
    assert logprob_BTL.grad[0, 0, 0] == 0 and logprob_BTL.grad[0, 0, 1] < 0


def test_gate_grpo_loss_equals_equation_5_written_out():
    logprob_BTL, old_BTL, advantage_B, is_response_BT = make_batch()
    surrogate_BTL = CLIPPED(logprob_BTL, old_BTL, advantage_B[:, None, None])
    per_rollout = [surrogate_BTL[i, is_response_BT[i]].mean() for i in range(8)]
    term = gate_grpo_loss(logprob_BTL, old_BTL, advantage_B, is_response_BT, CLIPPED)
    torch.testing.assert_close(term.loss, torch.stack(per_rollout).mean())


def test_gate_grpo_loss_is_the_sum_of_layer_shares_at_the_producing_positions():
    logprob_BTL, old_BTL, advantage_B, is_response_BT = make_batch()
    whole = gate_grpo_loss(logprob_BTL, old_BTL, advantage_B, is_response_BT, CLIPPED)
    (gradient_BTL,) = torch.autograd.grad(whole.loss, logprob_BTL)
    # A sequence of S = T + 3 positions: two prompt tokens before the last one, which produces y_1.
    num_sequences, _, num_layers = logprob_BTL.shape
    is_response_BS = torch.cat([torch.zeros(num_sequences, 3, dtype=torch.bool), is_response_BT], dim=1)
    is_token_BS = torch.cat([torch.ones(num_sequences, 3, dtype=torch.bool), is_response_BT], dim=1)
    weight_BS = gate_position_weights(gate_positions(is_response_BS, is_token_BS, "response"), num_layers) / 8
    total = 0.0
    for layer in range(num_layers):
        logprob_BS = torch.nn.functional.pad(logprob_BTL[..., layer], (2, 1), value=float("nan"))
        old_BS = torch.nn.functional.pad(old_BTL[..., layer], (2, 1), value=float("nan"))
        share = gate_grpo_layer_loss(logprob_BS, old_BS, advantage_B, weight_BS, CLIPPED)
        share.loss.backward()
        total += share.loss.item()
    # Bitwise per element; the order of the sum differs: measured 3e-8.
    assert torch.equal(logprob_BTL.grad, gradient_BTL)
    assert total == pytest.approx(whole.loss.item(), abs=1e-6)


def test_gate_grpo_loss_with_one_layer_equals_token_grpo():
    logprob_BTL, old_BTL, advantage_B, is_response_BT = make_batch(num_layers=1)
    gate = gate_grpo_loss(logprob_BTL, old_BTL, advantage_B, is_response_BT, CLIPPED)
    objective = objective_of(LossConfig(clip_epsilon=0.2))
    token = token_grpo_loss(logprob_BTL[..., 0], old_BTL[..., 0], advantage_B, is_response_BT, objective)
    torch.testing.assert_close(gate.loss, token.loss)


def test_gate_grpo_loss_gives_nothing_to_groups_without_signal_and_padding():
    logprob_BTL, old_BTL, advantage_B, is_response_BT = make_batch()
    gate_grpo_loss(logprob_BTL, old_BTL, advantage_B, is_response_BT, CLIPPED).loss.backward()
    assert (logprob_BTL.grad[:4] == 0).all()
    assert (logprob_BTL.grad[~is_response_BT] == 0).all()
    assert (logprob_BTL.grad[4:] != 0).any()


@pytest.mark.parametrize("cuts", [[0, 4, 8], [0, 1, 8], list(range(9))])
def test_gate_grpo_loss_is_the_same_in_micro_batches(cuts):
    logprob_BTL, old_BTL, advantage_B, is_response_BT = make_batch()
    whole = gate_grpo_loss(logprob_BTL, old_BTL, advantage_B, is_response_BT, CLIPPED)
    (gradient_BTL,) = torch.autograd.grad(whole.loss, logprob_BTL)
    total = 0.0
    for start, stop in pairwise(cuts):
        rows = slice(start, stop)
        part = gate_grpo_loss(
            logprob_BTL[rows], old_BTL[rows], advantage_B[rows], is_response_BT[rows], CLIPPED, num_sequences=8
        )
        part.loss.backward()
        total += part.loss.item()
    assert torch.equal(logprob_BTL.grad, gradient_BTL)
    assert total == pytest.approx(whole.loss.item(), abs=1e-6)


def test_gate_grpo_loss_gradient_through_the_router_equals_finite_differences():
    generator = torch.Generator().manual_seed(2)
    logits_MN = torch.randn(4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    experts_MK = torch.tensor([[0, 3], [4, 1], [2, 0], [1, 2]])
    old_BTL = selection_logprob(logits_MN.detach() + 0.1, experts_MK, "plackett_luce").view(2, 2, 1) - 0.05
    advantage_B = torch.tensor([1.0, -1.0], dtype=torch.float64)

    def loss(logits):
        logprob_BTL = selection_logprob(logits, experts_MK, "plackett_luce").view(2, 2, 1)
        return gate_grpo_loss(logprob_BTL, old_BTL, advantage_B, torch.ones(2, 2, dtype=torch.bool), CLIPPED).loss

    assert torch.autograd.gradcheck(loss, logits_MN)
