"""Modality-aware guidance over a run: from each step's choices to the next step's mask.  MoE-GRPO Eq. 7."""

from typing import Any

from torch import Tensor

from megatron_moe_grpo.rollout.records import RoutingCounts
from megatron_moe_grpo.routing.guidance import guidance_mask
from megatron_moe_grpo.training.metrics import guidance_metrics, routing_metrics
from megatron_moe_grpo.training.run import Run


def current_mask(run: Run) -> Tensor | None:
    """is_allowed_L2N of the counts so far; None where nothing is masked."""
    routing = run.config.routing
    if run.counts is None or routing.guidance != "modality":
        return None
    return guidance_mask(run.counts, routing.guidance_fraction, run.model.config.moe_router_topk).to(run.layout.device)


def count_routing(run: Run, counts: RoutingCounts | None) -> dict[str, Any]:
    """Adds this step's deterministic top-K choices, summed over ranks, to the running counts; reports on routing.

    The mask in the report is the one that this step was made under.
    """
    if counts is None:
        return {}
    mask_L2N = current_mask(run)
    sum_over_data = run.layout.sum_over_data
    top_k_L2N = sum_over_data(counts.top_k_L2N.clone())
    run.counts.update(vision_LN=top_k_L2N[:, 1], text_LN=top_k_L2N[:, 0])
    metrics = routing_metrics(
        top_k_L2N, sum_over_data(counts.entropy_sum_L.clone()), sum_over_data(counts.num_tokens.clone())
    )
    return metrics if mask_L2N is None else metrics | guidance_metrics(mask_L2N)
