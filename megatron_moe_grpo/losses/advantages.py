"""Group-normalised advantages.  MoE-GRPO Eq. 3: A^i = (R^i - mean R) / std R over the G rollouts of one prompt.

Choices the paper leaves open: the standard deviation is the unbiased one (divides by G - 1, as TRL and verl do), and
nothing is added to it.  A group whose rewards are all *exactly* equal has no signal and gets exactly 0; the test is
max == min, because the standard deviation of equal floats can come out as rounding noise, and dividing by that
would make advantages of +-1 out of nothing.  Dr.GRPO leaves the division out: A^i = R^i - mean R.

A reward that is not finite makes its group's advantages not finite, and so the loss: the update is skipped and counted
(training/update_guard.py).  Any other value for it would be made up.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_moe_grpo.errors import DataError


@dataclass(frozen=True, eq=False)
class GroupAdvantages:
    """Advantages of B = P * G rollouts, and which of the P prompts have any."""

    advantage_B: Tensor
    """float32, prompt-major; detached; exactly 0 in groups without signal."""
    has_signal_P: Tensor
    """bool, False where all G rewards are equal and finite (always for G = 1)."""


def group_advantages(reward_B: Tensor, group_size: int, divides_by_std: bool = True) -> GroupAdvantages:
    """Normalise rewards within each prompt's group.  MoE-GRPO Eq. 3.

    Args:
        reward_B: rewards, prompt-major: the G rollouts of a prompt stand together; no gradient.
        group_size: G.
        divides_by_std: False: rewards are only centred (Dr.GRPO).
    Returns:
        GroupAdvantages: finite where the group's rewards are; no other group is touched by one that is not.
    Raises:
        DataError: rewards that do not form whole groups.
    """
    if reward_B.shape[0] % group_size:
        raise DataError(
            "Rewards do not form whole groups",
            got=f"{reward_B.shape[0]} rewards",
            expected=f"a multiple of {group_size}",
        )
    # float64: the square of a tiny difference must not underflow to a standard deviation of 0.
    reward_PG = reward_B.detach().to(torch.float64).view(-1, group_size)
    # Infinity equals infinity, and is no group without signal.
    has_signal_P = (reward_PG.amax(1) != reward_PG.amin(1)) | ~reward_PG.isfinite().all(1)
    deviation_PG = reward_PG - reward_PG.mean(1, keepdim=True)
    advantage_PG = deviation_PG
    if divides_by_std:
        std_P = (deviation_PG.square().sum(1) / max(group_size - 1, 1)).sqrt()
        advantage_PG = deviation_PG / std_P.masked_fill(~has_signal_P, 1.0)[:, None]
    advantage_PG = advantage_PG.masked_fill(~has_signal_P[:, None], 0.0)
    return GroupAdvantages(advantage_B=advantage_PG.reshape(-1).to(torch.float32), has_signal_P=has_signal_P)
