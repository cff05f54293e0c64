"""The routers' logits of a replayed forward with their graph: what an independent reading of a loss starts from."""

from dataclasses import dataclass

import torch
from tiny_policy import guidance
from torch import Tensor

from megatron_moe_grpo.mcore.moe_layers import router_sizes
from megatron_moe_grpo.mcore.routing_context import RoutingContext
from megatron_moe_grpo.mcore.stochastic_router import route_with, stochastic_routers
from megatron_moe_grpo.models.token_batch import TokenBatch
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.routing.trace import RouteMode


@dataclass(frozen=True)
class ReplayedLogits:
    """All sequences of a step in one forward."""

    batch: TokenBatch
    """Prompts and all response tokens but the last."""
    logits_LBSN: Tensor
    """z = W h of every layer before mask and temperature; carries gradient to W and, through h, to all below."""
    output_BSV: Tensor


def replayed_logits(model: VisionLanguageModel, rollouts: RolloutBatch) -> ReplayedLogits:
    """Captures what enters each router and multiplies by its weight: the router's own code is not asked."""
    responses, prompts = rollouts.responses, rollouts.prompts
    batch = prompts.batch(0, len(prompts.rows)).repeated(rollouts.group_size)
    batch = batch.extended(responses.token_ids_BT[:, :-1], responses.is_response_BT[:, 1:])
    context = RoutingContext(
        RouteMode.REPLAY, batch.is_real_BS, batch.is_vision_BS, router_sizes(model.config),
        trace=responses.trace, is_allowed_L2N=guidance(),
    )  # fmt: skip
    logits: list[Tensor] = []
    hooks = [
        router.register_forward_pre_hook(
            lambda module, inputs: logits.append((inputs[0] @ module.weight.T).transpose(0, 1))
        )
        for router in stochastic_routers(model)
    ]
    route_with(model)(context)
    output_BSV = model(batch)
    route_with(model)(None)
    for hook in hooks:
        hook.remove()
    return ReplayedLogits(batch, torch.stack(logits), output_BSV)
