"""The clipped surrogate of GRPO, Dr.GRPO, DAPO and GSPO.  MoE-GRPO Eq. 3-5 (the bracket), after PPO.

loss = -min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A),  r = exp(logprob - old logprob).

The clip is one-sided: the gradient is zero only where the ratio has already moved past the trust region in the
direction the advantage asks for.  A ratio that moved the wrong way keeps its full gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_moe_grpo.losses.surrogate import ratio_of


@dataclass(frozen=True)
class ClippedSurrogate:
    """-min(r A, clip(r) A), element by element; see `Surrogate` for arguments."""

    epsilon_low: float
    """Width of the trust region below 1."""
    epsilon_high: float
    """Width above 1: where it is larger, unlikely choices have room to grow (DAPO's clip-higher)."""

    def __call__(self, logprob: Tensor, old_logprob: Tensor, advantage: Tensor) -> Tensor:
        ratio, advantage = ratio_of(logprob, old_logprob), advantage.detach()
        clipped = ratio.clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
        return -torch.minimum(ratio * advantage, clipped * advantage)

    def withheld(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """1 where the clip is active: the element has zero gradient."""
        is_above = (advantage > 0) & (ratio > 1 + self.epsilon_high)
        is_below = (advantage < 0) & (ratio < 1 - self.epsilon_low)
        return (is_above | is_below).float()
