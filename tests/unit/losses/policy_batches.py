"""A batch that every method can be tried on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_moe_grpo.config.schema import LossConfig, RlMethod
from megatron_moe_grpo.losses.objective import objective_of
from megatron_moe_grpo.losses.term import LossTerm
from megatron_moe_grpo.losses.token_grpo import token_grpo_loss
from megatron_moe_grpo.losses.token_weights import BatchTotals


@dataclass(frozen=True, eq=False)
class PolicyBatch:
    """Twelve responses of 0 to 5 tokens, fp64, ratios around 1, the first four without signal."""

    logprob_BT: Tensor
    old_BT: Tensor
    advantage_B: Tensor
    is_response_BT: Tensor

    def loss(self, losses: LossConfig, start: int = 0, stop: int = 12) -> LossTerm:
        """Of sequences start..stop-1, with the totals of all twelve."""
        rows = slice(start, stop)
        return token_grpo_loss(
            self.logprob_BT[rows],
            self.old_BT[rows],
            self.advantage_B[rows],
            self.is_response_BT[rows],
            objective_of(losses),
            BatchTotals.of(self.is_response_BT),
        )

    def gradient_BT(self, losses: LossConfig) -> Tensor:
        """Of the whole batch's loss."""
        return torch.autograd.grad(self.loss(losses).loss, self.logprob_BT)[0]


def make_policy_batch(spread: float = 0.3, padding: float = float("nan")) -> PolicyBatch:
    """`spread` 0: the first update, where every ratio is 1; `padding` stands outside the responses."""
    generator = torch.Generator().manual_seed(0)
    length_B = torch.tensor([5, 2, 3, 1, 4, 1, 5, 2, 0, 3, 5, 1])
    is_response_BT = torch.arange(5) < length_B[:, None]
    old_BT = -3 * torch.rand(12, 5, dtype=torch.float64, generator=generator) - 0.2
    moved_BT = spread * torch.randn(12, 5, dtype=torch.float64, generator=generator)
    advantage_B = torch.randn(12, generator=generator, dtype=torch.float64)
    advantage_B[:4] = 0
    old_BT, logprob_BT = old_BT.where(is_response_BT, padding), (old_BT + moved_BT).where(is_response_BT, padding)
    return PolicyBatch(logprob_BT.requires_grad_(), old_BT, advantage_B, is_response_BT)


def settings(method: RlMethod, **values: float) -> LossConfig:
    """Losses of `method`."""
    return LossConfig(rl_method=method, **values)
