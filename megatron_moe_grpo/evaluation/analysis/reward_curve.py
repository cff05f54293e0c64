"""Reward over a run, as a section of analysis.json.  MoE-GRPO Fig. 3."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

EDGE_SHARE = 0.1
"""Share of the steps at each end that the summary averages: single steps are noisy."""


def reward_section(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Mean and standard deviation of the reward, step by step.  MoE-GRPO Fig. 3a and 3b.

    Args:
        metrics: lines of metrics.jsonl.
    Returns:
        None for a run without rewards, else
        steps, mean: mean over all rollouts of the step;
        std: standard deviation within a group, mean over the step's groups;
        first_mean, last_mean, first_std, last_std: means over the first and last tenth of the steps (one at least).
        A value that is not finite is None.
    """
    lines = [line for line in metrics if "reward_mean" in line and "reward_std" in line]
    if not lines:
        return None
    mean, std = ([_finite(line[key]) for line in lines] for key in ("reward_mean", "reward_std"))
    edge = max(1, int(EDGE_SHARE * len(lines)))
    return {
        "steps": [line["step"] for line in lines],
        "mean": mean,
        "std": std,
        "first_mean": _mean(mean[:edge]),
        "last_mean": _mean(mean[-edge:]),
        "first_std": _mean(std[:edge]),
        "last_std": _mean(std[-edge:]),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return math.fsum(finite) / len(finite) if finite else None
