"""Expert selection as a policy: sample it, score it, guide it, record and replay it.  Plain torch."""

from megatron_moe_grpo.routing.expert_choice import expert_choice, expert_choice_weights
from megatron_moe_grpo.routing.guidance import ModalityCounts, guidance_mask, modality_awareness
from megatron_moe_grpo.routing.likelihood import SelectionLaw, routing_entropy, selection_logprob
from megatron_moe_grpo.routing.selection import (
    combination_weights,
    count_selections,
    counter_uniform,
    gaussian_noise,
    gumbel_noise,
    gumbel_top_k,
    noisy_top_k,
    top_k,
)
from megatron_moe_grpo.routing.sinkhorn import sinkhorn_plan, sinkhorn_top_k
from megatron_moe_grpo.routing.trace import RouteMode, RoutingTrace, TraceLedger

__all__ = [
    "ModalityCounts",
    "RouteMode",
    "RoutingTrace",
    "SelectionLaw",
    "TraceLedger",
    "combination_weights",
    "count_selections",
    "counter_uniform",
    "expert_choice",
    "expert_choice_weights",
    "gaussian_noise",
    "guidance_mask",
    "gumbel_noise",
    "gumbel_top_k",
    "modality_awareness",
    "noisy_top_k",
    "routing_entropy",
    "selection_logprob",
    "sinkhorn_plan",
    "sinkhorn_top_k",
    "top_k",
]
