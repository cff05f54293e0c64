"""Routing probabilities of every layer for one example, with the chosen experts.  MoE-GRPO Fig. 6."""

from typing import Any

import torch
from torch import Tensor


def example_routing(logits_SLN: Tensor, experts_SLK: Tensor, is_real_S: Tensor, is_vision_S: Tensor) -> dict[str, Any]:
    """Where one prompt's tokens go.  MoE-GRPO Fig. 6.

    The paper does not say of which token its probabilities are; here the one that produces the answer's first token,
    and the means over the prompt's vision and text tokens beside it.

    Args:
        logits_SLN: router logits of the prompt's positions; its last position produces the answer.
        experts_SLK: the experts that were used there.
        is_real_S: False on padding.
        is_vision_S: True on image and video tokens.
    Returns:
        Of `answer`, `vision` and `text`: probs_LN (softmax over all N experts, before the top-K; of `vision` and `text`
        the mean over tokens) and experts_LK (those used; of `vision` and `text` the K used most often).  `vision` is
        None for a question without pictures.
    """
    probs_SLN = torch.softmax(logits_SLN.float(), dim=-1)
    is_chosen_SLN = torch.zeros_like(probs_SLN).scatter(2, experts_SLK.long(), 1.0)
    num_active = experts_SLK.shape[2]
    return {
        "answer": {"probs_LN": probs_SLN[-1].tolist(), "experts_LK": experts_SLK[-1].tolist()},
        "vision": _mean(probs_SLN, is_chosen_SLN, is_real_S & is_vision_S, num_active),
        "text": _mean(probs_SLN, is_chosen_SLN, is_real_S & ~is_vision_S, num_active),
    }


def _mean(probs_SLN: Tensor, is_chosen_SLN: Tensor, is_of_it_S: Tensor, num_active: int) -> dict[str, Any] | None:
    if not is_of_it_S.any():
        return None
    used_LN = is_chosen_SLN[is_of_it_S].sum(dim=0)
    return {
        "probs_LN": probs_SLN[is_of_it_S].mean(dim=0).tolist(),
        "experts_LK": used_LN.topk(num_active, dim=-1).indices.tolist(),
        "num_tokens": int(is_of_it_S.sum()),
    }
