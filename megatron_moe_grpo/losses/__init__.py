"""The terms of the objective and the advantages they are weighted by.  Plain torch."""

from megatron_moe_grpo.losses.advantages import GroupAdvantages, group_advantages
from megatron_moe_grpo.losses.clipped_surrogate import (
    SurrogateStats,
    clipped_surrogate,
    surrogate_stats,
    weighted_surrogate,
)
from megatron_moe_grpo.losses.gate_grpo import (
    gate_grpo_layer_loss,
    gate_grpo_loss,
    gate_position_weights,
    gate_positions,
)
from megatron_moe_grpo.losses.kl import kl_estimate
from megatron_moe_grpo.losses.kl_schedule import ConstantKl, DynamicKl, KlSchedule
from megatron_moe_grpo.losses.load_balancing import expert_fractions, load_balancing_loss
from megatron_moe_grpo.losses.term import LossTerm
from megatron_moe_grpo.losses.token_grpo import token_grpo_loss, token_weights

__all__ = [
    "ConstantKl",
    "DynamicKl",
    "GroupAdvantages",
    "KlSchedule",
    "LossTerm",
    "SurrogateStats",
    "clipped_surrogate",
    "expert_fractions",
    "gate_grpo_layer_loss",
    "gate_grpo_loss",
    "gate_position_weights",
    "gate_positions",
    "group_advantages",
    "kl_estimate",
    "load_balancing_loss",
    "surrogate_stats",
    "token_grpo_loss",
    "token_weights",
    "weighted_surrogate",
]
