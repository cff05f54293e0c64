"""What the routers of a stage recorded, worked out for all its layers, and for many decode steps, at once.

A router only keeps its logits and experts: a decode step is many tiny kernels, and fewer of them is what keeps
recording cheap.  Layers of other pipeline stages hold zeros here, so that stages can be summed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_moe_grpo.mcore.routing_context import LayerRecord, RoutingContext
from megatron_moe_grpo.routing.likelihood import routing_entropy, selection_logprob
from megatron_moe_grpo.routing.trace import RouteMode


def join_forwards(contexts: Sequence[RoutingContext]) -> RoutingContext:
    """Consecutive forwards of the same sequences as if all their positions had been one forward; records only.

    Tokens are position-major, so what follows in time follows in memory.
    """

    def joined(layer: int, name: str) -> Tensor:
        return torch.cat([vars(context.record_by_layer[layer])[name] for context in contexts])

    first = contexts[0]
    explores_BS = None
    if first.explores_BS is not None:
        explores_BS = torch.cat([context.explores_BS for context in contexts], dim=1)
    return RoutingContext(
        mode=first.mode,
        is_real_BS=torch.cat([context.is_real_BS for context in contexts], dim=1),
        is_vision_BS=torch.cat([context.is_vision_BS for context in contexts], dim=1),
        sizes=first.sizes,
        policy=first.policy,
        explores_BS=explores_BS,
        record_by_layer={
            layer: LayerRecord(**{name: joined(layer, name) for name in vars(record)})
            for layer, record in first.record_by_layer.items()
        },
    )


@torch.no_grad()
def recorded_experts_BSLK(context: RoutingContext) -> Tensor:
    """Chosen experts of this rank's positions, int16."""
    experts_LMK = _all_layers(_stacked(context, "experts_MK").to(torch.int16), context)
    return experts_LMK.unflatten(1, (-1, len(context.is_real_BS))).permute(2, 1, 0, 3)


@torch.no_grad()
def recorded_logprob_BSL(context: RoutingContext) -> Tensor:
    """Log-likelihood of each selection at this rank's positions, nats, fp32; 0 where nothing was sampled."""
    experts_LMK = _stacked(context, "experts_MK")
    if context.mode is RouteMode.TOP_K:
        logprob_LM = torch.zeros(experts_LMK.shape[:2], device=experts_LMK.device)
    else:
        logprob_LM = selection_logprob(
            _stacked(context, "policy_logits_MN").flatten(0, 1), experts_LMK.flatten(0, 1), context.policy.likelihood
        ).view(experts_LMK.shape[:2])
        if context.explores_BS is not None:
            # Where nothing was sampled there is no policy: the top-K was certain.
            logprob_LM = logprob_LM.masked_fill(~context.to_local(context.explores_BS), 0.0)
    return _all_layers(logprob_LM, context).unflatten(1, (-1, len(context.is_real_BS))).permute(2, 1, 0)


@torch.no_grad()
def recorded_entropy_L(context: RoutingContext) -> Tensor:
    """Entropy of the router's distribution, summed over this rank's real tokens, nats, float64."""
    entropy_LM = routing_entropy(_stacked(context, "logits_MN"))
    is_real_M = context.to_local(context.is_real_BS)
    return _all_layers((entropy_LM * is_real_M).sum(dim=1, dtype=torch.float64), context)


@torch.no_grad()
def recorded_top_k_L2N(context: RoutingContext) -> Tensor:
    """How many of this rank's text and vision (index 1) tokens have each expert in their top-K, float64."""
    logits_LMN = _stacked(context, "logits_MN")
    is_chosen_LMN = torch.zeros_like(logits_LMN, dtype=torch.float64)
    is_chosen_LMN.scatter_(2, logits_LMN.topk(context.sizes.num_active, dim=2).indices, 1.0)
    is_real_M, is_vision_M = context.to_local(context.is_real_BS), context.to_local(context.is_vision_BS)
    modality_2M = torch.stack((is_real_M & ~is_vision_M, is_real_M & is_vision_M)).double()
    return _all_layers(modality_2M @ is_chosen_LMN, context)


def _stacked(context: RoutingContext, name: str) -> Tensor:
    """One field of all records, [layers of this stage, M, K or N]."""
    if not context.record_by_layer:
        num_tokens = context.to_local(context.is_real_BS).shape[0]
        device, sizes = context.is_real_BS.device, context.sizes
        if name == "experts_MK":
            return torch.zeros(0, num_tokens, sizes.num_active, dtype=torch.int64, device=device)
        return torch.zeros(0, num_tokens, sizes.num_experts, device=device)
    return torch.stack([vars(record)[name] for record in context.record_by_layer.values()])


def _all_layers(values: Tensor, context: RoutingContext) -> Tensor:
    """[layers of this stage, ...] -> [L, ...]."""
    if len(values) == context.sizes.num_layers:
        return values
    everywhere = values.new_zeros(context.sizes.num_layers, *values.shape[1:])
    everywhere[list(context.record_by_layer)] = values
    return everywhere
