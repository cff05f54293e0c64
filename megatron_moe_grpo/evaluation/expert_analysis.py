"""How evenly experts are used, and how differently by task.  MoE-GRPO Fig. 4 and 5.

Counts are how often each expert was in the deterministic top-K, over vision and text tokens of held-out rows.
The paper names neither the logarithm's base nor how layers are joined.  Read here: natural logarithm, a
distribution per layer (expert 3 of layer 1 and expert 3 of layer 2 are different experts), then the mean over layers.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from megatron_moe_grpo.errors import DataError

Counts = Tensor | Sequence[Sequence[float]]


def expert_utilisation(counts_LN: Counts) -> Tensor:
    """Share of each layer's selections that went to each expert.  MoE-GRPO Fig. 4.

    u_l(e) = count_l(e) / sum_e count_l(e).

    Args:
        counts_LN: selections of each expert in each layer; tensor or nested list, no gradient.
    Returns:
        utilisation_LN: float64, each row sums to 1.
    Raises:
        DataError: a negative or non-finite count, or a layer without any.
    """
    counts = torch.as_tensor(counts_LN, dtype=torch.float64).detach()
    if counts.dim() != 2:
        raise DataError("expert counts must have shape [layers, experts]", got=tuple(counts.shape))
    if not torch.isfinite(counts).all() or (counts < 0).any():
        raise DataError("expert counts must be finite and not negative", got=counts.tolist())
    totals_L1 = counts.sum(dim=-1, keepdim=True)
    if (totals_L1 == 0).any():
        empty = (totals_L1[:, 0] == 0).nonzero()[:, 0].tolist()
        raise DataError("layers without a single expert selection have no utilisation", got=f"layers {empty}")
    return counts / totals_L1


def layer_entropies_nats(counts_LN: Counts) -> Tensor:
    """Entropy of each layer's utilisation: 0 for one expert only, ln N for an even spread.  Returns float64 [L]."""
    return _entropy_nats(expert_utilisation(counts_LN))


def utilisation_entropy_nats(counts_LN: Counts) -> float:
    """Token-level expert entropy: mean over layers of the utilisation's entropy.  MoE-GRPO Fig. 4.

    H = mean_l [ - sum_e u_l(e) ln u_l(e) ], between 0 and ln N (2.08 for 8 experts; the paper reports 1.05 -> 1.82).
    This is the entropy of the pooled choices of all tokens, not the mean entropy of single tokens' router
    probabilities: the paper's text is about how many experts a sequence uses.
    """
    return float(layer_entropies_nats(counts_LN).mean())


def mean_jensen_shannon_divergence_nats(counts_by_task: Mapping[str, Counts]) -> float:
    """How differently tasks use the experts: 0 when all alike, ln 2 when no two share an expert.  MoE-GRPO Fig. 5.

    JSD_l(a, b) = H((u_a + u_b) / 2) - (H(u_a) + H(u_b)) / 2; mean over layers, then over pairs of tasks.

    Args:
        counts_by_task: counts_LN of each task, all of one shape.
    Raises:
        DataError: fewer than two tasks, or shapes that differ.
    """
    pairs = [divergence_L.mean() for divergence_L in divergences_by_pair_nats(counts_by_task).values()]
    return float(torch.stack(pairs).mean())


def divergences_by_pair_nats(counts_by_task: Mapping[str, Counts]) -> dict[tuple[str, str], Tensor]:
    """JSD_l(a, b) of every pair of tasks, layer by layer: float64 [L].  Arguments and errors as for the mean."""
    if len(counts_by_task) < 2:
        raise DataError("a divergence between tasks takes at least two tasks", got=list(counts_by_task))
    utilisations = {task: expert_utilisation(counts) for task, counts in counts_by_task.items()}
    shapes = {task: tuple(utilisation_LN.shape) for task, utilisation_LN in utilisations.items()}
    if len(set(shapes.values())) > 1:
        raise DataError("expert counts of all tasks must have one shape", got=shapes)
    return {(a, b): _divergence_nats(utilisations[a], utilisations[b]) for a, b in combinations(utilisations, 2)}


def _divergence_nats(a_LN: Tensor, b_LN: Tensor) -> Tensor:
    mixed = _entropy_nats((a_LN + b_LN) / 2)
    # Rounding can leave -1e-17 for two equal distributions.
    return (mixed - (_entropy_nats(a_LN) + _entropy_nats(b_LN)) / 2).clamp(min=0)


def _entropy_nats(probs_LN: Tensor) -> Tensor:
    return torch.special.entr(probs_LN).sum(dim=-1)
