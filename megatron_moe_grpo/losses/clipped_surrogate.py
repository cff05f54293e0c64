"""The clipped surrogate that Token-GRPO and Gate-GRPO share.  MoE-GRPO Eq. 3-5 (the bracket), after PPO.

loss = -min(r A, clip(r, 1 - epsilon, 1 + epsilon) A),  r = exp(logprob - old logprob).

The clip is one-sided: the gradient is zero only where the ratio has already moved past the trust region in the
direction the advantage asks for.  A ratio that moved the wrong way keeps its full gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_moe_grpo.losses.term import LossTerm


@dataclass(frozen=True, eq=False)
class SurrogateStats:
    """Detached facts about a surrogate, element by element."""

    ratio: Tensor
    """exp(logprob - old logprob), fp32."""
    is_clipped: Tensor
    """bool, True where the clip is active: the element has zero gradient."""


def clipped_surrogate(logprob: Tensor, old_logprob: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """-min(r A, clip(r) A), element by element.  MoE-GRPO Eq. 3-5.

    Args:
        logprob: nats, any shape; computed in fp32 at least; carries gradient.
        old_logprob: the same at rollout time; no gradient flows into it.
        advantage: broadcast against logprob; no gradient flows into it.
        epsilon: half-width of the trust region.
    Returns:
        loss: shape of the broadcast, fp32 (fp64 for fp64 log-probs).
    """
    ratio = _ratio(logprob, old_logprob)
    advantage = advantage.detach()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)


def surrogate_stats(logprob: Tensor, old_logprob: Tensor, advantage: Tensor, epsilon: float) -> SurrogateStats:
    """Ratio and whether the clip is active; arguments as for `clipped_surrogate`.  Detached."""
    ratio = _ratio(logprob.detach(), old_logprob)
    is_clipped = ((advantage > 0) & (ratio > 1 + epsilon)) | ((advantage < 0) & (ratio < 1 - epsilon))
    return SurrogateStats(ratio=ratio, is_clipped=is_clipped)


def weighted_surrogate(
    logprob: Tensor, old_logprob: Tensor, advantage: Tensor, weight: Tensor, epsilon: float
) -> LossTerm:
    """sum(weight * clipped surrogate), with its metrics.

    Linear in the elements: split a batch anyhow, keep each element's weight, and the losses, gradients and metrics
    add up to those of the whole.  Where weight or advantage is 0 the element gives exactly 0 to loss and gradient,
    whatever its log-probs hold (padding may hold anything, NaN included).

    Args:
        logprob, old_logprob, advantage, epsilon: as for `clipped_surrogate`.
        weight: >= 0, shape of logprob; no gradient flows into it.
    Returns:
        LossTerm: metrics clip_fraction, ratio_mean and approx_kl (nats, the estimator r - 1 - log r of KL(old || new)),
            all weighted sums, and logprob_gap_max (largest |logprob - old logprob| of positive weight).
    """
    weight = weight.detach()
    advantage = advantage.detach().expand_as(logprob)
    is_counted = weight != 0
    has_gradient = is_counted & (advantage != 0)
    loss = clipped_surrogate(
        torch.where(has_gradient, logprob, 0.0), torch.where(has_gradient, old_logprob, 0.0), advantage, epsilon
    )
    counted, old_counted = (torch.where(is_counted, value.detach(), 0.0) for value in (logprob, old_logprob))
    stats = surrogate_stats(counted, old_counted, advantage, epsilon)
    log_ratio = counted.float() - old_counted.float()
    metrics = {
        "clip_fraction": (weight * stats.is_clipped).sum(),
        "ratio_mean": (weight * stats.ratio).sum(),
        "approx_kl": (weight * (torch.expm1(log_ratio) - log_ratio)).sum(),
        "logprob_gap_max": log_ratio.abs().amax(),
    }
    return LossTerm(loss=(weight * loss).sum(), metrics=metrics)


def _ratio(logprob: Tensor, old_logprob: Tensor) -> Tensor:
    dtype = torch.promote_types(logprob.dtype, torch.float32)
    return torch.exp(logprob.to(dtype) - old_logprob.detach().to(dtype))
