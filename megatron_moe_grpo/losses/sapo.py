"""SAPO ("soft adaptive policy optimization"): a gate that closes smoothly instead of a clip.

loss = -f(r) A,  f(r) = 4 / tau * sigmoid(tau (r - 1)),  tau = tau_positive where A > 0, else tau_negative

f'(r) = 4 p (1 - p) with p = sigmoid(tau (r - 1)): 1 at r = 1, as for plain policy gradient, and falling on both sides.
The steeper tau for negative advantages lets go of such tokens sooner: they raise the logits of all the words that
were not said.  Only the gradient has a meaning: f(1) = 2 / tau, not 1, so the loss at ratio 1 is -2 A / tau.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.losses.policy_objective import PolicyObjective

# exp(20) is far beyond where the gate has shut in fp32, and far below where exp overflows and 0 * inf gives NaN.
MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class SoftGateSurrogate:
    """-f(r) A, element by element; see `Surrogate` for arguments."""

    temperature_positive: float
    """tau where the advantage is positive."""
    temperature_negative: float
    """tau elsewhere."""

    def __call__(self, logprob: Tensor, old_logprob: Tensor, advantage: Tensor) -> Tensor:
        dtype = torch.promote_types(logprob.dtype, torch.float32)
        log_ratio = (logprob.to(dtype) - old_logprob.detach().to(dtype)).clamp(max=MAX_LOG_RATIO)
        advantage = advantage.detach()
        temperature = self._temperature(advantage)
        gate = torch.sigmoid(temperature * torch.expm1(log_ratio)) * (4 / temperature)
        return -gate * advantage

    def withheld(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """1 - f'(r) = tanh^2(tau (r - 1) / 2)."""
        withheld = torch.tanh(self._temperature(advantage) * (ratio - 1) / 2).square()
        return withheld.masked_fill(advantage == 0, 0.0)

    def _temperature(self, advantage: Tensor) -> Tensor:
        return torch.where(advantage > 0, self.temperature_positive, self.temperature_negative)


def sapo(losses: LossConfig) -> PolicyObjective:
    """Tokens and gates under the soft gate with the two temperatures of the settings."""
    soft = SoftGateSurrogate(losses.sapo_temperature_positive, losses.sapo_temperature_negative)
    return PolicyObjective("sapo", token=soft, gate=soft)
