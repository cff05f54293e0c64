"""The KL term of the objective: beta * weighted sum of the per-token estimates.  OThink-MR1 Eq. 1 and 5."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_moe_grpo.config.schema import KlEstimator
from megatron_moe_grpo.losses.kl import kl_estimate
from megatron_moe_grpo.losses.term import LossTerm


@dataclass(frozen=True)
class KlTerm:
    """How strongly this update is held to the reference."""

    beta: float
    """Weight of the term at this step (`KlSchedule.beta_at`)."""
    estimator: KlEstimator = "k3"


def kl_loss(
    logprob_BT: Tensor,
    reference_logprob_BT: Tensor,
    is_response_BT: Tensor,
    weight_BT: Tensor,
    num_response_tokens: float,
    estimator: KlEstimator,
) -> LossTerm:
    """sum(weight * kl estimate), before beta.  OThink-MR1 Eq. 5.

    Linear in the tokens, like the policy loss whose weights it takes.

    Args:
        logprob_BT: log pi(y_t), nats; carries gradient; values outside the response are never read.
        reference_logprob_BT: log pi_ref(y_t); no gradient flows into it.
        is_response_BT: bool, True where y_t exists.
        weight_BT: `token_weights` of the policy loss; no gradient.
        num_response_tokens: of the global batch.
        estimator: k1, k2 or k3.
    Returns:
        LossTerm: metric kl, nats, this batch's share of the mean over all response tokens of the global batch.
    """
    kl_BT = kl_estimate(
        torch.where(is_response_BT, logprob_BT, 0.0), torch.where(is_response_BT, reference_logprob_BT, 0.0), estimator
    )
    mean = kl_BT.detach().sum() / max(num_response_tokens, 1.0)
    return LossTerm(loss=(weight_BT.detach() * kl_BT).sum(), metrics={"kl": mean})
