"""Token-GRPO: the clipped surrogate on the response's tokens.  MoE-GRPO Eq. 4.

L = mean over rollouts i of 1/|y_i| sum_t -min(r_t A, clip(r_t) A),
r_t = pi(y_t | x, y_<t; E) / pi_old(y_t | x, y_<t; E), both conditioned on the replayed routing trace E.

The mean over rollouts and the mean over tokens are one weight a token, 1 / (|y_i| * B).  With B the number of
sequences of the *global* batch, the loss is a plain weighted sum, so the sum over micro-batches and ranks is exact
however the batch is cut.  (A mean a micro-batch would be right only for micro-batches of equal size.)
"""

import torch
from torch import Tensor

from megatron_moe_grpo.losses.clipped_surrogate import weighted_surrogate
from megatron_moe_grpo.losses.term import LossTerm


def token_weights(is_response_BT: Tensor, num_sequences: int | None = None) -> Tensor:
    """Weight of each response token: 1 / (|y_i| * num_sequences), 0 elsewhere.  MoE-GRPO Eq. 4.

    Args:
        is_response_BT: bool, True where y_t exists.
        num_sequences: sequences of the global batch; None: B, these are all of them.
    Returns:
        weight_BT: fp32, adds up to 1 over the global batch; a sequence without response weighs 0, not NaN.
    """
    num_tokens_B1 = is_response_BT.sum(1, keepdim=True).clamp(min=1)
    return is_response_BT.to(torch.float32) / (num_tokens_B1 * (num_sequences or is_response_BT.shape[0]))


def token_grpo_loss(
    token_logprob_BT: Tensor,
    old_token_logprob_BT: Tensor,
    advantage_B: Tensor,
    is_response_BT: Tensor,
    epsilon: float,
    num_sequences: int | None = None,
) -> LossTerm:
    """Clipped surrogate on token ratios.  MoE-GRPO Eq. 4.

    Args:
        token_logprob_BT: log pi(y_t), nats, under the replayed trace; carries gradient.
        old_token_logprob_BT: the same at rollout time; detached.
        advantage_B: group-normalised, 0 for groups without signal (which then give exactly 0).
        is_response_BT: bool, True where y_t exists; values elsewhere are never read.
        epsilon: half-width of the trust region.
        num_sequences: sequences of the global batch; None: B.
    Returns:
        LossTerm: scalar loss; metrics as for `weighted_surrogate`.
    """
    weight_BT = token_weights(is_response_BT, num_sequences)
    return weighted_surrogate(token_logprob_BT, old_token_logprob_BT, advantage_B[:, None], weight_BT, epsilon)
