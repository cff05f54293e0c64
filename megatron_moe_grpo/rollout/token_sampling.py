"""Which token follows: the most likely one, or a draw, from all of them or from the nucleus.

The recorded log-probability is always that of the whole vocabulary at temperature 1, which is also what the update
computes; so at another temperature or with a nucleus the samples come from a sharper law than the one that is trained,
and the ratios do not correct for it.  GRPO-D samples at temperature 1 from all tokens, where the two are the same.
"""

import torch
from torch import Tensor

from megatron_moe_grpo.routing.selection import gumbel_noise

TOKEN_LAYER = -1
"""Counter-based noise of token sampling: below every MoE layer's number, so the two never share a draw."""


def choose_tokens(
    logits_BV: Tensor, stream_B: Tensor, position_B1: Tensor, seed: int, temperature: float, top_p: float
) -> Tensor:
    """Greedy at temperature 0, else one draw from softmax(logits / temperature) within the nucleus.

    Args:
        logits_BV: fp32; -inf where a token must not be produced.
        stream_B, position_B1, seed: they alone determine the draw, whatever the batch (Gumbel-max).
    Returns:
        token_B: int64.
    """
    if temperature == 0.0:
        return logits_BV.argmax(dim=-1)
    scaled_BV = nucleus_logits(logits_BV / temperature, top_p)
    layer_L = torch.tensor([TOKEN_LAYER], device=stream_B.device)
    noise = gumbel_noise(seed, stream_B, layer_L, position_B1, logits_BV.shape[1])
    return (scaled_BV + noise[0, :, 0]).argmax(dim=-1)


def nucleus_logits(logits_BV: Tensor, top_p: float) -> Tensor:
    """-inf outside the nucleus: the fewest tokens whose probabilities add up to `top_p`.  Holtzman et al. 2020.

    The most likely token always stays; 1 changes nothing.
    """
    if top_p >= 1.0:
        return logits_BV
    sorted_BV, index_BV = logits_BV.sort(dim=-1, descending=True)
    probs_BV = sorted_BV.softmax(dim=-1)
    # A token goes when those before it already reach top_p: the one that crosses the bar still belongs.
    is_outside_BV = probs_BV.cumsum(dim=-1) - probs_BV >= top_p
    return logits_BV.masked_fill(torch.zeros_like(is_outside_BV).scatter(1, index_BV, is_outside_BV), float("-inf"))
