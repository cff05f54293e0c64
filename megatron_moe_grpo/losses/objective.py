"""From `losses.rl_method` to what it changes.  MoE-GRPO Table 6.

method   ratio of      what limits it                 tokens averaged     advantages
grpo     a token       clip 0.2 / 0.2                 by sequence         / std
dr_grpo  a token       clip 0.2 / 0.2                 constant length     centred only
dapo     a token       clip 0.2 / 0.28                over the batch      / std
gspo     a response    clip 3e-4 / 4e-4               by sequence         / std
sapo     a token       a sigmoid, tau 1 / 1.05        by sequence         / std
cispo    a token       its weight capped at 1.2       over the batch      / std
"""

from collections.abc import Callable

from megatron_moe_grpo.config.schema import LossConfig, RlMethod
from megatron_moe_grpo.losses.cispo import cispo
from megatron_moe_grpo.losses.dapo import dapo
from megatron_moe_grpo.losses.dr_grpo import dr_grpo
from megatron_moe_grpo.losses.grpo import grpo
from megatron_moe_grpo.losses.gspo import gspo
from megatron_moe_grpo.losses.policy_objective import PolicyObjective
from megatron_moe_grpo.losses.sapo import sapo

RL_METHODS: dict[RlMethod, Callable[[LossConfig], PolicyObjective]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "sapo": sapo,
    "cispo": cispo,
}


def objective_of(losses: LossConfig) -> PolicyObjective:
    """The objective of `losses.rl_method`, with the widths and temperatures of the settings or the method's own."""
    return RL_METHODS[losses.rl_method](losses)
