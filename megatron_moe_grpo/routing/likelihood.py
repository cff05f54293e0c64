"""The log-likelihood of a selection of experts, which Gate-GRPO's ratio is made of.  MoE-GRPO Eq. 5.

The paper writes g(E | x) for the probability of a *set* of K experts and does not define it.  Three readings:

* `plackett_luce`: the exact probability of the ordered draw, sum_j [z_{e_j} - logsumexp over experts not yet drawn];
* `set`: the exact probability of the unordered set, the K! orders added up in log space;
* `product`: the sum of the marginal log-softmax of the chosen experts; not a normalised law.

A mask is part of the law: old and new likelihood must be given logits under the same mask.
"""

from itertools import permutations
from typing import Literal, get_args

import torch
from torch import Tensor

from megatron_moe_grpo.errors import ConfigError

SelectionLaw = Literal["plackett_luce", "set", "product"]

_LARGEST_SET = 4


def selection_logprob(logits_MN: Tensor, experts_MK: Tensor, kind: SelectionLaw) -> Tensor:
    """Log-likelihood of choosing these experts.  MoE-GRPO Eq. 5, METHOD 2.

    Args:
        logits_MN: any float type, computed in fp32 at least; divided by the temperature, -inf where closed;
            carries gradient (finite; 0 at closed experts).
        experts_MK: integer, distinct, open; in the order of sampling for `plackett_luce`, any order otherwise.
        kind: the law.
    Returns:
        logprob_M: nats, fp32 (fp64 for fp64 logits).
    Raises:
        ConfigError: an unknown law, or `set` with K > 4 (its cost grows as K!).
    """
    logits_MN = _at_least_fp32(logits_MN)
    experts_MK = experts_MK.long()
    if kind == "plackett_luce":
        return _plackett_luce(logits_MN, experts_MK)
    if kind == "set":
        return _unordered(logits_MN, experts_MK)
    if kind == "product":
        return torch.log_softmax(logits_MN, dim=-1).gather(-1, experts_MK).sum(-1)
    raise ConfigError("Unknown law of a selection", got=kind, expected=get_args(SelectionLaw))


def routing_entropy(logits_MN: Tensor) -> Tensor:
    """Entropy of softmax(logits), nats, fp32 at least: entropy_M.  Closed experts (-inf) count as probability 0.

    Carries gradient, finite and 0 at closed experts.
    """
    log_probs_MN = torch.log_softmax(_at_least_fp32(logits_MN), dim=-1)
    # 0 * -inf is NaN, forwards and backwards; p log p is 0 at p = 0.
    finite_MN = log_probs_MN.masked_fill(log_probs_MN == -torch.inf, 0.0)
    return -(log_probs_MN.exp() * finite_MN).sum(-1)


def _plackett_luce(logits_MN: Tensor, experts_MK: Tensor) -> Tensor:
    """Log-probability of drawing the experts one after another without replacement."""
    chosen_MK = logits_MN.gather(-1, experts_MK)
    remaining_MN = logits_MN
    logprob_M = torch.zeros_like(chosen_MK[:, 0])
    for draw in range(experts_MK.shape[-1]):
        # A true logsumexp of what is left, never total minus drawn: that difference cancels when one expert dominates.
        logprob_M = logprob_M + chosen_MK[:, draw] - torch.logsumexp(remaining_MN, dim=-1)
        remaining_MN = remaining_MN.scatter(-1, experts_MK[:, draw : draw + 1], -torch.inf)
    return logprob_M


def _unordered(logits_MN: Tensor, experts_MK: Tensor) -> Tensor:
    """Log-probability of drawing the experts in any order."""
    num_active = experts_MK.shape[-1]
    if num_active > _LARGEST_SET:
        raise ConfigError(
            "The likelihood `set` adds up K! orders",
            got=f"K = {num_active}",
            expected=f"K <= {_LARGEST_SET}",
            remedy="set routing.likelihood to plackett_luce",
        )
    orders = [_plackett_luce(logits_MN, experts_MK[:, list(order)]) for order in permutations(range(num_active))]
    return torch.logsumexp(torch.stack(orders), dim=0)


def _at_least_fp32(logits_MN: Tensor) -> Tensor:
    return logits_MN.to(torch.promote_types(logits_MN.dtype, torch.float32))
