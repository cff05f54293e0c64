"""How much each response token counts: the averages of the methods, as one weight a token.

    sequence_mean    1 / (|y_i| B)                GRPO, GSPO, SAPO: every response counts the same (MoE-GRPO Eq. 4)
    token_mean       1 / (sum over i of |y_i|)    DAPO Eq. 8, CISPO: every token counts the same
    constant_length  1 / (B T_max)                Dr.GRPO: a token counts the same whatever its response's length

B, the sum and T_max are those of the *global* batch, so a loss is a plain weighted sum and exact however the batch is
cut into micro-batches and ranks.  (A mean a micro-batch would be right only for micro-batches of equal size.)
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

TokenWeighting = Literal["sequence_mean", "token_mean", "constant_length"]


@dataclass(frozen=True)
class BatchTotals:
    """What the averages divide by: constants of the global batch, the same on every rank."""

    num_sequences: int
    """B, rollouts."""
    num_response_tokens: float
    """Response tokens of all of them, end-of-turn tokens included."""
    max_response_tokens: int
    """T_max, the longest response that was allowed (`rollout.max_new_tokens`)."""

    @staticmethod
    def of(is_response_BT: Tensor) -> "BatchTotals":
        """Of a batch that is the whole one; T is then T_max."""
        return BatchTotals(is_response_BT.shape[0], float(is_response_BT.sum()), is_response_BT.shape[1])


def token_weights(
    is_response_BT: Tensor, weighting: TokenWeighting = "sequence_mean", totals: BatchTotals | None = None
) -> Tensor:
    """Weight of each response token, 0 elsewhere.

    Args:
        is_response_BT: bool, True where y_t exists.
        weighting: the method's average.
        totals: of the global batch; None: these are all sequences.
    Returns:
        weight_BT: fp32; over the global batch it adds up to 1 (constant_length: to at most 1); a sequence without
            response weighs 0, not NaN.
    """
    totals = totals or BatchTotals.of(is_response_BT)
    is_response_float_BT = is_response_BT.to(torch.float32)
    if weighting == "token_mean":
        return is_response_float_BT / max(totals.num_response_tokens, 1.0)
    if weighting == "constant_length":
        return is_response_float_BT / (totals.num_sequences * totals.max_response_tokens)
    num_tokens_B1 = is_response_BT.sum(1, keepdim=True).clamp(min=1)
    return is_response_float_BT / (num_tokens_B1 * totals.num_sequences)
