"""Per-token estimators of KL(pi || reference) from samples of pi.  OThink-MR1 Eq. 5 is `k3`.

With d = log pi_ref - log pi and rho = exp(d):  k1 = -d;  k2 = d^2 / 2;  k3 = rho - log rho - 1.
k1 is unbiased and noisy, k2 biased, k3 unbiased, never negative and low in variance.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from megatron_moe_grpo.errors import ConfigError

KlEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprob: Tensor, reference_logprob: Tensor, kind: KlEstimator = "k3") -> Tensor:
    """Estimate KL(pi || reference) at each token.  OThink-MR1 Eq. 5.

    Args:
        logprob: log pi, nats, any shape; computed in fp32 at least; carries gradient.
        reference_logprob: log pi_ref, same shape; no gradient flows into it.
        kind: the estimator.
    Returns:
        kl: nats, shape of logprob.
    Raises:
        ConfigError: an unknown estimator.
    """
    dtype = torch.promote_types(logprob.dtype, torch.float32)
    log_rho = reference_logprob.detach().to(dtype) - logprob.to(dtype)
    if kind == "k1":
        return -log_rho
    if kind == "k2":
        return log_rho.square() / 2
    if kind == "k3":
        # exp(d) - d - 1 loses everything to rounding below d = 1e-4 in fp32; expm1 does not.
        return torch.expm1(log_rho) - log_rho
    raise ConfigError("Unknown KL estimator", got=kind, expected=get_args(KlEstimator))
