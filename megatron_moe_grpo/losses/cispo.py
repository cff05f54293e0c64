"""CISPO ("clipped importance-sampling policy optimization"): weights are clipped, not updates.  MiniMax-M1 Eq. 4-5.

loss = -sg(min(r, 1 + epsilon_high)) A log pi,  sg: no gradient

Every token keeps a gradient, however far its ratio moved: -min(r, 1 + epsilon_high) A.  As in the paper there is no
lower bound.  The value is a log-likelihood, not a difference around 0: only its gradient has a meaning.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.losses.policy_objective import PolicyObjective
from megatron_moe_grpo.losses.surrogate import ratio_of


@dataclass(frozen=True)
class CappedWeightSurrogate:
    """-sg(min(r, 1 + epsilon_high)) A log pi, element by element; see `Surrogate` for arguments."""

    epsilon_high: float
    """The largest weight is 1 + this."""

    def __call__(self, logprob: Tensor, old_logprob: Tensor, advantage: Tensor) -> Tensor:
        weight = ratio_of(logprob.detach(), old_logprob).clamp(max=1 + self.epsilon_high)
        return -weight * advantage.detach() * logprob.to(torch.promote_types(logprob.dtype, torch.float32))

    def withheld(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """1 - min(r, 1 + epsilon_high) / r."""
        withheld = (1 - (1 + self.epsilon_high) / ratio).clamp(min=0)
        return withheld.masked_fill(advantage == 0, 0.0)


def cispo(losses: LossConfig) -> PolicyObjective:
    """Weights of tokens and gates capped at 1 + clip_epsilon_high (None: clip_epsilon); every token weighs the same."""
    epsilon_high = losses.clip_epsilon_high or losses.clip_epsilon
    capped = CappedWeightSurrogate(epsilon_high)
    return PolicyObjective("cispo", token=capped, gate=capped, weighting="token_mean")
