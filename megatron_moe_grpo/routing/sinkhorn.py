"""Optimal transport of tokens to experts by Sinkhorn's algorithm.  Clark et al. 2022 (S-BASE); MoE-GRPO Table 7.

The plan P maximises sum P * logits + entropy(P) where every token has the same mass and every expert receives the same:
P = diag(u) exp(logits) diag(v).  A token's experts are its K largest entries of P; v lowers the experts that many
tokens want.  They depend on the other tokens of the micro-batch, so the choice is not causal, cannot be replayed as a
policy, and has no likelihood; inference takes the top-K of the logits.
"""

import torch
from torch import Tensor


@torch.no_grad()
def sinkhorn_plan(logits_MN: Tensor, is_real_M: Tensor, num_iterations: int) -> Tensor:
    """The log of the transport plan times the number of tokens.  Sinkhorn's algorithm in log space.

    A round normalises rows, then columns, in the order of Megatron-Core's `sinkhorn`.  That one runs until the columns
    settle; here the number of rounds is given, so that every rank does the same work and none waits for the device.

    Args:
        logits_MN: fp32, already divided by the temperature (the weight of the entropy).
        is_real_M: bool, False at padding: it takes no part in the balance, but has a row like any token.
        num_iterations: rounds.
    Returns:
        log_plan_MN: fp32.  Over real tokens, columns of its exp add up to tokens / N, and rows to 1 once converged.
            No gradient.
    """
    log_plan_MN = logits_MN.float()
    log_share = (is_real_M.sum() / logits_MN.shape[1]).log()
    for _ in range(num_iterations):
        log_plan_MN = log_plan_MN - log_plan_MN.logsumexp(dim=1, keepdim=True)
        real_MN = log_plan_MN.masked_fill(~is_real_M[:, None], -torch.inf)
        log_plan_MN = log_plan_MN - real_MN.logsumexp(dim=0, keepdim=True) + log_share
    return log_plan_MN


def sinkhorn_top_k(logits_MN: Tensor, is_real_M: Tensor, num_iterations: int, k: int) -> Tensor:
    """The K experts with the largest entries in each token's row of `sinkhorn_plan` (same arguments), best first.

    Returns:
        experts_MK: int64.  No gradient: their weights are `combination_weights` of the logits, as for any choice.
    """
    return sinkhorn_plan(logits_MN, is_real_M, num_iterations).topk(k, dim=-1).indices
