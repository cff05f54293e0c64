"""One forward pass over whole sequences, with what every router saw and chose."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_moe_grpo.mcore.decoding import CachedForward
from megatron_moe_grpo.mcore.moe_layers import RouterSizes
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.mcore.routing_context import RoutingContext
from megatron_moe_grpo.mcore.stochastic_router import route_with
from megatron_moe_grpo.models.token_batch import TokenBatch
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rollout.records import Responses
from megatron_moe_grpo.routing.trace import RouteMode, RoutingTrace


@dataclass(frozen=True, eq=False)
class RoutersSaw:
    """Every router's input and output at every position."""

    logits_BSLN: Tensor
    """fp32, unmasked."""
    experts_BSLK: Tensor
    """int64, the experts that were used."""

    @property
    def top_k_BSLK(self) -> Tensor:
        """What deterministic routing would have chosen from these logits."""
        return self.logits_BSLN.topk(self.experts_BSLK.shape[-1], dim=-1).indices


def with_responses(prompts: TokenBatch, responses: Responses) -> TokenBatch:
    """The sequences as they were fed while decoding: prompts and all response tokens but the last."""
    return prompts.extended(responses.token_ids_BT[:, :-1], responses.is_response_BT[:, 1:])


def recorded_forward(
    model: VisionLanguageModel,
    layout: ParallelLayout,
    sequences: TokenBatch,
    sizes: RouterSizes,
    *,
    features_FD: Tensor | None,
    trace: RoutingTrace | None = None,
    is_allowed_L2N: Tensor | None = None,
) -> RoutersSaw:
    """All positions at once; call inside `decoding_mode`, on one process.

    Args:
        features_FD: features of the batch's visuals (`model.image_features`).
        trace: experts to replay, of the same shape as `sequences`; None: deterministic top-K.
        is_allowed_L2N: guidance mask of that top-K (`routing.guidance_at_inference`).
    """
    context = RoutingContext(
        mode=RouteMode.TOP_K if trace is None else RouteMode.REPLAY,
        is_real_BS=sequences.is_real_BS,
        is_vision_BS=sequences.is_vision_BS,
        sizes=sizes,
        is_allowed_L2N=is_allowed_L2N,
        trace=trace,
    )
    hand_over = route_with(model)
    hand_over(context)
    num_sequences, num_positions = sequences.token_ids_BS.shape
    CachedForward(model, layout, num_sequences, num_positions)(sequences, features_FD)
    hand_over(None)
    records = [context.record_by_layer[layer] for layer in range(sizes.num_layers)]
    # Routers hold position-major tokens: [S * B, ...].
    logits_SBLN = torch.stack([record.logits_MN for record in records], dim=1).unflatten(0, (-1, num_sequences))
    experts_SBLK = torch.stack([record.experts_MK for record in records], dim=1).unflatten(0, (-1, num_sequences))
    return RoutersSaw(logits_SBLN.transpose(0, 1), experts_SBLK.transpose(0, 1))
