"""GSPO ("group sequence policy optimization"): one ratio for a whole response.  GSPO Eq. 5-7.

s_i = (pi(y_i | x) / pi_old(y_i | x))^(1/|y_i|) = exp( 1/|y_i| sum_t log r_it )
L = mean over rollouts i of -min(s_i A, clip(s_i) A)

Its gradient is -s_i A * mean over t of grad log pi(y_t) where the clip is not active: all tokens of a response are kept
or dropped together.  Here every token carries its sequence's log-ratio and GRPO's weight 1/(|y_i| B): the same sum.

s_i is a geometric mean over a response and moves far less than a token's ratio, so its trust region is narrow:
3e-4 below and 4e-4 above (GSPO 5.1).  Inside a router there is no sequence ratio: it sees one layer, and MoE-GRPO Eq. 5
asks for one ratio a position.  The gates keep GRPO's surrogate with GRPO's width.
"""

import torch
from torch import Tensor

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.losses.clipped_surrogate import ClippedSurrogate
from megatron_moe_grpo.losses.grpo import grpo
from megatron_moe_grpo.losses.policy_objective import PolicyObjective

EPSILON_LOW, EPSILON_HIGH = 3e-4, 4e-4


def gspo(losses: LossConfig) -> PolicyObjective:
    """Sequences clipped at 3e-4 and 4e-4, gates at clip_epsilon; with clip_epsilon_high given, both by these two."""
    token = ClippedSurrogate(EPSILON_LOW, EPSILON_HIGH)
    if losses.clip_epsilon_high is not None:
        token = ClippedSurrogate(losses.clip_epsilon, losses.clip_epsilon_high)
    return PolicyObjective("gspo", token=token, gate=grpo(losses).gate, ratio="sequence")


def sequence_log_ratio(logprob_BT: Tensor, old_logprob_BT: Tensor, is_response_BT: Tensor) -> Tensor:
    """log s_i at every token of response i: the mean of its tokens' log-ratios.  GSPO Eq. 7.

    Args:
        logprob_BT: nats; carries gradient; values outside the response are never read.
        old_logprob_BT: the same at rollout time; no gradient flows into it.
        is_response_BT: bool, True where y_t exists.
    Returns:
        log_ratio_BT: nats, the same along T; fp32 at least; 0 for a sequence without response.
    """
    dtype = torch.promote_types(logprob_BT.dtype, torch.float32)
    log_ratio_BT = logprob_BT.to(dtype) - old_logprob_BT.detach().to(dtype)
    # where, not a product with the mask: padding may hold NaN.
    sum_B1 = torch.where(is_response_BT, log_ratio_BT, 0.0).sum(1, keepdim=True)
    return (sum_B1 / is_response_BT.sum(1, keepdim=True).clamp(min=1)).expand_as(logprob_BT)
