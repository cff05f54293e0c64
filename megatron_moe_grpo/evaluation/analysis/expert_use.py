"""How evenly experts are used, and how differently by task, as sections of analysis.json.  MoE-GRPO Fig. 4 and 5."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from megatron_moe_grpo.evaluation.expert_analysis import (
    divergences_by_pair_nats,
    expert_utilisation,
    layer_entropies_nats,
    mean_jensen_shannon_divergence_nats,
    utilisation_entropy_nats,
)


def utilisation_section(counts_LN: Tensor) -> dict[str, Any]:
    """Token-level expert utilisation and its entropy.  MoE-GRPO Fig. 4.

    Args:
        counts_LN: how many tokens have each expert in their deterministic top-K, over all rows.
    Returns:
        share_LN: u_l(e) = count_l(e) / sum_e count_l(e); rows add up to 1.
        entropy_by_layer_nats: -sum_e u_l(e) ln u_l(e), and `entropy_nats`, its mean over layers.
        even_entropy_nats: ln N, the entropy of even use.
        effective_experts: exp(entropy_nats): as many evenly used experts have this entropy.
        unused_experts_by_layer: experts that no token chose.
    """
    entropy_nats = utilisation_entropy_nats(counts_LN)
    return {
        "counts_LN": counts_LN.tolist(),
        "share_LN": expert_utilisation(counts_LN).tolist(),
        "entropy_by_layer_nats": layer_entropies_nats(counts_LN).tolist(),
        "entropy_nats": entropy_nats,
        "even_entropy_nats": math.log(counts_LN.shape[1]),
        "effective_experts": math.exp(entropy_nats),
        "unused_experts_by_layer": (counts_LN == 0).sum(dim=1).tolist(),
    }


def task_section(counts_by_task: Mapping[str, Tensor]) -> dict[str, Any]:
    """Expert ratio by task, and how far tasks lie apart.  MoE-GRPO Fig. 5.

    Args:
        counts_by_task: counts_LN of each task (`problem_type`), two tasks at least.
    Returns:
        share_LN: of each task, as in `utilisation_section`.
        mean_share_N: of each task, the mean over layers: the x-axis of the paper's Fig. 5.
        divergence_nats: Jensen-Shannon divergence, mean over layers, then over pairs of tasks; 0 alike, ln 2 disjoint.
        divergence_by_layer_nats: mean over pairs, layer by layer.
        pairs: each pair with its divergence, mean over layers.
    Raises:
        DataError: fewer than two tasks.
    """
    by_pair = divergences_by_pair_nats(counts_by_task)
    shares = {task: expert_utilisation(counts_LN) for task, counts_LN in counts_by_task.items()}
    return {
        "share_LN": {task: share_LN.tolist() for task, share_LN in shares.items()},
        "mean_share_N": {task: share_LN.mean(dim=0).tolist() for task, share_LN in shares.items()},
        "divergence_nats": mean_jensen_shannon_divergence_nats(counts_by_task),
        "divergence_by_layer_nats": torch.stack(list(by_pair.values())).mean(dim=0).tolist(),
        "pairs": [{"tasks": list(pair), "divergence_nats": float(d_L.mean())} for pair, d_L in by_pair.items()],
    }
