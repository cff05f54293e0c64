"""GRPO: clipped token ratios, every response counts the same, advantages in standard deviations.  MoE-GRPO Eq. 3-5."""

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.losses.clipped_surrogate import ClippedSurrogate
from megatron_moe_grpo.losses.policy_objective import PolicyObjective


def grpo(losses: LossConfig) -> PolicyObjective:
    """Tokens and gates clipped at 1 - clip_epsilon and 1 + clip_epsilon_high (None: the same width)."""
    clipped = ClippedSurrogate(losses.clip_epsilon, losses.clip_epsilon_high or losses.clip_epsilon)
    return PolicyObjective("grpo", token=clipped, gate=clipped)
