"""Log-probabilities of a prompt's own tokens: what harnesses score multiple-choice answers by."""

import torch
from torch import Tensor

from megatron_moe_grpo.mcore.moe_layers import router_sizes
from megatron_moe_grpo.mcore.routing_context import RoutingContext
from megatron_moe_grpo.mcore.stochastic_router import route_with
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.token_batch import pad_prompts
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.routing.trace import RouteMode
from megatron_moe_grpo.serving.active_batch import POLICY, scored_token
from megatron_moe_grpo.serving.generation import Job, ScoredToken

# Positions whose whole distribution is held at a time: 256 x 150,000 fp32 are 150 MB.
POSITIONS_TOGETHER = 256


def prompt_logprobs(model: VisionLanguageModel, processing: Processing, job: Job) -> tuple[ScoredToken, ...]:
    """Each token of the prompt under the tokens before it; the first one has no log-probability.

    Experts are the deterministic top-K, whatever the job's responses use.
    """
    ids = job.prompt.ids
    batch = pad_prompts(
        [ids],
        [job.prompt.visuals],
        processing.vision_token_ids,
        processing.pad_token_id,
        rope_positions=[job.prompt.rope_position_3S],
    ).to(next(model.parameters()).device)
    sizes, hand_over = router_sizes(model.config), route_with(model)
    if sizes is not None:
        hand_over(RoutingContext(RouteMode.TOP_K, batch.is_real_BS, batch.is_vision_BS, sizes, POLICY))
    try:
        logits_SV = model(batch)[0]
    finally:
        hand_over(None)
    scored = [ScoredToken(ids[0], None)]
    for start in range(0, len(ids) - 1, POSITIONS_TOGETHER):
        part_SV: Tensor = logits_SV[start : min(start + POSITIONS_TOGETHER, len(ids) - 1)]
        logprob_SV = torch.log_softmax(part_SV.float(), dim=-1)
        scored += [
            scored_token(logprob_V, token_id, job.sampling.num_top_logprobs)
            for logprob_V, token_id in zip(logprob_SV, ids[start + 1 :], strict=False)
        ]
    return tuple(scored)
