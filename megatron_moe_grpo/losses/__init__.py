"""The terms of the objective and the advantages they are weighted by.  Plain torch."""

from megatron_moe_grpo.losses.advantages import GroupAdvantages, group_advantages
from megatron_moe_grpo.losses.clipped_surrogate import ClippedSurrogate
from megatron_moe_grpo.losses.gate_grpo import (
    gate_grpo_layer_loss,
    gate_grpo_loss,
    gate_position_weights,
    gate_positions,
)
from megatron_moe_grpo.losses.kl import kl_estimate
from megatron_moe_grpo.losses.kl_loss import KlTerm, kl_loss
from megatron_moe_grpo.losses.kl_schedule import AdaptiveKl, ConstantKl, DecayingKl, DynamicKl, KlSchedule
from megatron_moe_grpo.losses.load_balancing import expert_fractions, load_balancing_loss
from megatron_moe_grpo.losses.objective import objective_of
from megatron_moe_grpo.losses.overlong import overlong_penalty
from megatron_moe_grpo.losses.policy_objective import PolicyObjective
from megatron_moe_grpo.losses.router_z import router_z_loss
from megatron_moe_grpo.losses.surrogate import Surrogate, weighted_surrogate
from megatron_moe_grpo.losses.term import LossTerm
from megatron_moe_grpo.losses.token_grpo import token_grpo_loss
from megatron_moe_grpo.losses.token_weights import BatchTotals, token_weights

__all__ = [
    "AdaptiveKl",
    "BatchTotals",
    "ClippedSurrogate",
    "ConstantKl",
    "DecayingKl",
    "DynamicKl",
    "GroupAdvantages",
    "KlSchedule",
    "KlTerm",
    "LossTerm",
    "PolicyObjective",
    "Surrogate",
    "expert_fractions",
    "gate_grpo_layer_loss",
    "gate_grpo_loss",
    "gate_position_weights",
    "gate_positions",
    "group_advantages",
    "kl_estimate",
    "kl_loss",
    "load_balancing_loss",
    "objective_of",
    "overlong_penalty",
    "router_z_loss",
    "token_grpo_loss",
    "token_weights",
    "weighted_surrogate",
]
