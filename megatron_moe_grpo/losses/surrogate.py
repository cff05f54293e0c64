"""What all policy losses share: an element's surrogate, and its weighted sum over a batch.

A surrogate is a function of one element (a token, or one router's selection): log-prob, old log-prob, advantage.  At
ratio 1 the gradient of each of them with respect to the log-prob is -A, plain policy gradient; they differ in what they
withhold when the ratio r = exp(logprob - old logprob) has moved away.
"""

from typing import Protocol

import torch
from torch import Tensor

from megatron_moe_grpo.losses.term import LossTerm


class Surrogate(Protocol):
    """One element's loss, with its widths or temperatures built in."""

    def __call__(self, logprob: Tensor, old_logprob: Tensor, advantage: Tensor) -> Tensor:
        """The loss, element by element, fp32 (fp64 for fp64 log-probs).

        Args:
            logprob: nats, any shape; carries gradient.
            old_logprob: the same at rollout time; no gradient flows into it.
            advantage: broadcast against logprob; no gradient flows into it.
        """
        ...

    def withheld(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """Share 0-1 of the plain gradient -r A that the surrogate withholds; 0 where the advantage is 0.  Detached.

        One meaning for hard and soft methods: 1 where a hard clip is active, in between where a gate lets part through.
        """
        ...


def ratio_of(logprob: Tensor, old_logprob: Tensor) -> Tensor:
    """r = exp(logprob - old logprob), fp32 at least; carries the gradient of `logprob` alone."""
    dtype = torch.promote_types(logprob.dtype, torch.float32)
    return torch.exp(logprob.to(dtype) - old_logprob.detach().to(dtype))


def weighted_surrogate(
    logprob: Tensor, old_logprob: Tensor, advantage: Tensor, weight: Tensor, surrogate: Surrogate
) -> LossTerm:
    """sum(weight * surrogate), with its metrics.

    Linear in the elements: split a batch anyhow, keep each element's weight, and the losses, gradients and metrics
    add up to those of the whole.  Where weight or advantage is 0 the element gives exactly 0 to loss and gradient,
    whatever its log-probs hold (padding may hold anything, NaN included).

    Args:
        logprob, old_logprob, advantage: as for `Surrogate.__call__`.
        weight: >= 0, shape of logprob; no gradient flows into it.
        surrogate: the method's.
    Returns:
        LossTerm: metrics clip_fraction (share of the gradient that is withheld), ratio_mean and approx_kl (nats, the
            estimator r - 1 - log r of KL(old || new)), all weighted sums, and logprob_gap_max (largest
            |logprob - old logprob| of positive weight).
    """
    weight = weight.detach()
    advantage = advantage.detach().expand_as(logprob)
    is_counted = weight != 0
    has_gradient = is_counted & (advantage != 0)
    loss = surrogate(torch.where(has_gradient, logprob, 0.0), torch.where(has_gradient, old_logprob, 0.0), advantage)
    counted, old_counted = (torch.where(is_counted, value.detach(), 0.0) for value in (logprob, old_logprob))
    ratio, log_ratio = ratio_of(counted, old_counted), counted.float() - old_counted.float()
    metrics = {
        "clip_fraction": (weight * surrogate.withheld(ratio, advantage)).sum(),
        "ratio_mean": (weight * ratio).sum(),
        "approx_kl": (weight * (torch.expm1(log_ratio) - log_ratio)).sum(),
        "logprob_gap_max": log_ratio.abs().amax(),
    }
    return LossTerm(loss=(weight * loss).sum(), metrics=metrics)
