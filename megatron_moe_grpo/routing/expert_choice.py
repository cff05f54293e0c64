"""Expert Choice: experts take tokens, not tokens experts.  Zhou et al. 2022, section 3; MoE-GRPO Table 7.

S = softmax over experts of the logits;  expert e takes its C tokens with the largest S[:, e],  C = tokens * K / N.

Every expert has the same load by construction, and a token has any number of experts from 0 to N.  Which ones depends
on the other tokens of the micro-batch, later ones and other sequences' included: the choice is not causal.  It cannot
decode (a new token alone would be taken by every expert), cannot be replayed as a policy, and has no likelihood.
"""

import torch
from torch import Tensor


def expert_choice(logits_MN: Tensor, is_real_M: Tensor, num_active: int) -> Tensor:
    """Which expert takes which token.  Zhou et al. 2022: TopK of the transposed scores.

    C is rounded down, so that tokens have at most K experts on average, but every expert takes one token at least.
    Equal scores go to the earlier token.

    Args:
        logits_MN: router logits of a whole micro-batch, fp32.
        is_real_M: bool, False at padding, which no expert takes and which does not count in C.
        num_active: K, the mean number of experts a token.
    Returns:
        routing_map_MN: bool.  No gradient.
    """
    num_tokens, num_experts = logits_MN.shape
    scores_MN = torch.softmax(logits_MN.detach(), dim=-1).masked_fill(~is_real_M[:, None], -1.0)
    order_MN = scores_MN.argsort(dim=0, descending=True, stable=True)
    # A tensor, not a number: reading it would make the host wait for the device in every layer.
    capacity = (is_real_M.sum() * num_active // num_experts).clamp(min=1)
    is_taken_M1 = torch.arange(num_tokens, device=logits_MN.device)[:, None] < capacity
    routing_map_MN = torch.zeros_like(order_MN, dtype=torch.bool)
    return routing_map_MN.scatter(0, order_MN, is_taken_M1.expand_as(order_MN)) & is_real_M[:, None]


def expert_choice_weights(logits_MN: Tensor, routing_map_MN: Tensor, *, renormalise: bool) -> Tensor:
    """Weights of the experts that took a token: their scores S.  Zhou et al. 2022.

    `renormalise=True` divides them by the token's sum, as `combination_weights` does: in a model whose K weights add up
    to 1, outputs would otherwise have another scale in training than in use.

    Args:
        logits_MN: any float type, softmax in fp32 at least; carries gradient.
        routing_map_MN: bool, from `expert_choice`; no gradient.
        renormalise: whether a token's weights add up to 1.
    Returns:
        probs_MN: fp32 (fp64 for fp64 logits), 0 where the map is False, so all 0 for a token without expert; carries
            gradient.
    """
    logits_MN = logits_MN.to(torch.promote_types(logits_MN.dtype, torch.float32))
    if renormalise:
        # A token without expert keeps its logits: softmax over nothing is NaN, and so is its gradient.
        is_left_out_MN = ~routing_map_MN & routing_map_MN.any(dim=1, keepdim=True)
        logits_MN = logits_MN.masked_fill(is_left_out_MN, -torch.inf)
    return torch.softmax(logits_MN, dim=-1) * routing_map_MN
