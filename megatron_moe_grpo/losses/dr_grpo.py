"""Dr.GRPO ("GRPO done right"): GRPO without its two divisions.

* Advantages are R - mean R, not divided by the group's standard deviation: that division favours questions that are
  nearly always or nearly never answered right.
* A token weighs 1 / (B T_max), not 1 / (B |y_i|): dividing by its own length makes a long wrong response cheap.

Expert selections keep Gate-GRPO's mean over their own sequence (MoE-GRPO Eq. 5); only their advantages change.
"""

from dataclasses import replace

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.losses.grpo import grpo
from megatron_moe_grpo.losses.policy_objective import PolicyObjective


def dr_grpo(losses: LossConfig) -> PolicyObjective:
    """GRPO's surrogates, a constant length, advantages that are only centred."""
    return replace(grpo(losses), name="dr_grpo", weighting="constant_length", divides_by_std=False)
