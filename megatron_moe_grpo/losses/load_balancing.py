"""The load-balancing loss of the Switch Transformer, for K selections a token.  Switch Eq. 4-6; MoE-GRPO Table 7.

loss = N * sum_e f_e * P_e, with f_e the share of all selections that went to expert e (sums to 1, no gradient) and
P_e the weighted mean of the router's probability for e (carries the gradient).  It is 1 at perfect balance.

f is taken over the *global* batch and enters as a constant, and P is a weighted sum whose weights add up to 1 over
the global batch: the term is linear in the tokens, hence exact under any split into micro-batches and ranks.
Which selections are counted, the sampled experts or the deterministic top-K, is the caller's choice
(`losses.load_balancing_counts`).
"""

import torch
from torch import Tensor

from megatron_moe_grpo.routing.selection import count_selections


def expert_fractions(experts_MK: Tensor, num_experts: int, is_counted_M: Tensor) -> Tensor:
    """Share of the selections that each expert received.  Switch Eq. 5.

    For shares of a batch spread over ranks, add up `count_selections` first and divide once.

    Args:
        experts_MK: integer, chosen experts.
        num_experts: N.
        is_counted_M: bool, False at padding.
    Returns:
        fraction_N: float32, adds up to 1; all 0 where no token is counted.
    """
    count_N = count_selections(experts_MK, num_experts, is_counted_M)
    return (count_N / count_N.sum().clamp(min=1)).to(torch.float32)


def load_balancing_loss(router_probs_MN: Tensor, expert_fraction_N: Tensor, weight_M: Tensor) -> Tensor:
    """N * sum_e f_e * P_e.  Switch Eq. 4-6.

    Args:
        router_probs_MN: softmax of the router's logits over all N experts, fp32; carries gradient.
        expert_fraction_N: f of the global batch; no gradient flows into it.
        weight_M: weight of each token, 0 at padding, adding up to 1 over the global batch; no gradient.
    Returns:
        loss: scalar, fp32.
    """
    mean_prob_N = (weight_M.detach()[:, None] * router_probs_MN).sum(0)
    return router_probs_MN.shape[-1] * (expert_fraction_N.detach() * mean_prob_N).sum()
