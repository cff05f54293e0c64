"""Gate-GRPO: the policy loss on expert selections.  MoE-GRPO Eq. 5.

L = mean over rollouts i of 1/(L |y_i|) sum_l sum_t -min(r_tl A, clip(r_tl) A),
r_tl = g(E_tl | .) / g_old(E_tl | .), one ratio for each response step t and MoE layer l, never a product over layers.
So the loss is a sum of one share a layer, and a router can work out its own share where its logits are.

Choices the paper leaves open: the law g (`routing.likelihood`), and which positions count.  y_t is produced by the
logits at the position before it, so step t owns the selections made there: the last prompt token for t = 1.
`gate_tokens: all` counts every position whose routing can have moved the response.

The equation is GRPO's; another method (`objective.py`) puts its own surrogate in the place of the bracket and changes
neither the ratios nor the weights.
"""

from typing import Literal

import torch
from torch import Tensor

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.losses.surrogate import Surrogate, weighted_surrogate
from megatron_moe_grpo.losses.term import LossTerm


def gate_positions(is_response_BS: Tensor, is_token_BS: Tensor, gate_tokens: Literal["response", "all"]) -> Tensor:
    """Positions whose selections Gate-GRPO trains.  METHOD 4.

    The last token of a response is never one of them: nothing was decoded from it, so its selections have no reward.

    Args:
        is_response_BS: bool, True where a token of the response *stands* (not where it was produced).
        is_token_BS: bool, True where there is a token at all, False at padding.
        gate_tokens: `response`: the position before each response token; `all`: every token up to the last of those.
    Returns:
        is_gate_position_BS: bool.
    Raises:
        ConfigError: another value of gate_tokens.
    """
    is_producer_BS = torch.zeros_like(is_response_BS)
    is_producer_BS[:, :-1] = is_response_BS[:, 1:]
    if gate_tokens == "response":
        return is_producer_BS & is_token_BS
    if gate_tokens == "all":
        has_later_producer_BS = is_producer_BS.flip(1).cumsum(1).flip(1) > 0
        return has_later_producer_BS & is_token_BS
    raise ConfigError("Unknown positions for Gate-GRPO", got=gate_tokens, expected="response or all")


def gate_position_weights(is_gate_position_BS: Tensor, num_layers: int) -> Tensor:
    """Weight of one (position, layer) within its sequence: 1 / (L * positions of the sequence).  MoE-GRPO Eq. 5.

    Not divided by the number of sequences: that is the global batch's, which the caller knows.

    Args:
        is_gate_position_BS: bool, from `gate_positions`.
        num_layers: L, MoE layers of the whole model, not of this pipeline stage.
    Returns:
        weight_BS: fp32; over positions and layers it adds up to 1 a sequence; 0 for a sequence without positions.
    """
    num_positions_B1 = is_gate_position_BS.sum(1, keepdim=True).clamp(min=1)
    return is_gate_position_BS.to(torch.float32) / (num_layers * num_positions_B1)


def gate_grpo_layer_loss(
    logprob_BS: Tensor, old_logprob_BS: Tensor, advantage_B: Tensor, weight_BS: Tensor, surrogate: Surrogate
) -> LossTerm:
    """One layer's share of Gate-GRPO: sum(weight * surrogate).  MoE-GRPO Eq. 5.

    The shares of all layers, micro-batches and ranks add up to `gate_grpo_loss` of the global batch.

    Args:
        logprob_BS: log g(E | .) of this layer's replayed selections, nats; carries gradient.
        old_logprob_BS: the same at rollout time (`RoutingTrace.logprob_BSL[..., l]`); detached.
        advantage_B: group-normalised, 0 for groups without signal (which then give exactly 0).
        weight_BS: `gate_position_weights` divided by the sequences of the global batch.
        surrogate: the method's (`PolicyObjective.gate`).
    Returns:
        LossTerm: scalar loss; metrics as for `weighted_surrogate`.
    """
    return weighted_surrogate(logprob_BS, old_logprob_BS, advantage_B[:, None], weight_BS, surrogate)


def gate_grpo_loss(
    selection_logprob_BTL: Tensor,
    old_selection_logprob_BTL: Tensor,
    advantage_B: Tensor,
    is_response_BT: Tensor,
    surrogate: Surrogate,
    num_sequences: int | None = None,
) -> LossTerm:
    """The policy loss on expert selections, all layers at once.  MoE-GRPO Eq. 5.

    Args:
        selection_logprob_BTL: log g(E | .) of the selections made at the position that produced y_t; carries gradient.
        old_selection_logprob_BTL: the same at rollout time; detached.
        advantage_B: group-normalised, 0 for groups without signal.
        is_response_BT: bool, True where y_t exists; values elsewhere are never read.
        surrogate: the method's (`PolicyObjective.gate`).
        num_sequences: sequences of the global batch; None: B.
    Returns:
        LossTerm: scalar loss; metrics as for `weighted_surrogate`.
    """
    num_layers = selection_logprob_BTL.shape[-1]
    weight_BT = gate_position_weights(is_response_BT, num_layers) / (num_sequences or is_response_BT.shape[0])
    shares = [
        gate_grpo_layer_loss(
            selection_logprob_BTL[..., layer], old_selection_logprob_BTL[..., layer], advantage_B, weight_BT, surrogate
        )
        for layer in range(num_layers)
    ]
    metrics = {
        name: _combine(name, torch.stack([share.metrics[name] for share in shares])) for name in shares[0].metrics
    }
    return LossTerm(loss=torch.stack([share.loss for share in shares]).sum(), metrics=metrics)


def _combine(name: str, values: Tensor) -> Tensor:
    return values.amax() if name.endswith("_max") else values.sum()
