"""Token-GRPO: the policy loss on the response's tokens.  MoE-GRPO Eq. 4.

L = mean over rollouts i of 1/|y_i| sum_t -min(r_t A, clip(r_t) A),
r_t = pi(y_t | x, y_<t; E) / pi_old(y_t | x, y_<t; E), both conditioned on the replayed routing trace E.

That is GRPO; other methods put another surrogate, ratio or average in its place (`objective.py`).  Whatever the method,
the averages are one weight a token (`token_weights.py`), and the loss is a plain weighted sum.
"""

import torch
from torch import Tensor

from megatron_moe_grpo.losses.gspo import sequence_log_ratio
from megatron_moe_grpo.losses.policy_objective import PolicyObjective
from megatron_moe_grpo.losses.surrogate import weighted_surrogate
from megatron_moe_grpo.losses.term import LossTerm
from megatron_moe_grpo.losses.token_weights import BatchTotals, token_weights


def token_grpo_loss(
    token_logprob_BT: Tensor,
    old_token_logprob_BT: Tensor,
    advantage_B: Tensor,
    is_response_BT: Tensor,
    objective: PolicyObjective,
    totals: BatchTotals | None = None,
) -> LossTerm:
    """The method's policy loss on tokens.  MoE-GRPO Eq. 4.

    Args:
        token_logprob_BT: log pi(y_t), nats, under the replayed trace; carries gradient.
        old_token_logprob_BT: the same at rollout time; detached.
        advantage_B: of each rollout, 0 for groups without signal (which then give exactly 0).
        is_response_BT: bool, True where y_t exists; values elsewhere are never read.
        objective: from `objective_of`.
        totals: of the global batch; None: these are all sequences.
    Returns:
        LossTerm: scalar loss; metrics as for `weighted_surrogate`.
    """
    weight_BT = token_weights(is_response_BT, objective.weighting, totals)
    logprob_BT, old_BT = token_logprob_BT, old_token_logprob_BT
    if objective.ratio == "sequence":
        logprob_BT = sequence_log_ratio(logprob_BT, old_BT, is_response_BT)
        old_BT = torch.zeros_like(logprob_BT)
    return weighted_surrogate(logprob_BT, old_BT, advantage_B[:, None], weight_BT, objective.token)
