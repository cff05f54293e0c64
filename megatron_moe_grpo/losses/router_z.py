"""The router z-loss: keeps a router's logits small, so that their softmax stays exact.  ST-MoE Eq. 5.

loss = sum_m w_m (logsumexp over experts of z_m)^2,  z_m the router's logits of token m.

It is a weighted sum over tokens: with weights that add up to 1 over the global batch it is exact under any split into
micro-batches and ranks.
"""

import torch
from torch import Tensor


def router_z_loss(logits_MN: Tensor, weight_M: Tensor) -> Tensor:
    """Mean squared logsumexp of one router's logits.  ST-MoE Eq. 5.

    Args:
        logits_MN: router logits before mask, noise and temperature, fp32; carries gradient.
        weight_M: weight of each token, 0 at padding, adding up to 1 over the global batch; no gradient.
    Returns:
        loss: scalar, fp32.
    """
    return (weight_M.detach() * torch.logsumexp(logits_MN, dim=-1).square()).sum()
