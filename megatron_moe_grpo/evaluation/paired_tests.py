"""Two models on the same examples: how far apart they are, and whether chance alone would do it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_moe_grpo.errors import EvaluationError

NUM_RESAMPLES = 10_000
# Resamples are weighed a few at a time: 10,000 of 20,000 clusters would be 1.6 GB.
RESAMPLES_AT_ONCE = 200
QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class PairedComparison:
    """`second` minus `first`."""

    difference: float
    """Of the shares of right examples."""
    low: float
    """95 % interval of the paired bootstrap."""
    high: float
    num_only_first: int
    """Examples that `first` alone got right."""
    num_only_second: int
    p_value: float
    """McNemar's exact test, two-sided."""


def compare_paired(
    first: Sequence[bool], second: Sequence[bool], clusters: Sequence[str], seed: int = 0
) -> PairedComparison:
    """Compares two models' outcomes on the same examples.

    Args:
        clusters: what each example shares with others (its picture, its video): the bootstrap draws whole clusters,
            since answers on one video are not independent.
    Raises:
        EvaluationError: lists of different lengths, or empty ones.
    """
    if not len(first) == len(second) == len(clusters) or not first:
        raise EvaluationError("outcomes are not paired", got=f"{len(first)}, {len(second)}, {len(clusters)} examples")
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    low, high = paired_bootstrap_interval(first, second, clusters, seed)
    return PairedComparison(
        difference=(only_second - only_first) / len(first),
        low=low,
        high=high,
        num_only_first=only_first,
        num_only_second=only_second,
        p_value=mcnemar_p_value(only_first, only_second),
    )


def mcnemar_p_value(num_only_first: int, num_only_second: int) -> float:
    """McNemar's exact test: how often n fair coins fall at least as unevenly; 1 without discordant examples.

    p = min(1, 2 sum_{k <= m} C(n, k) / 2^n), n discordant examples, m the smaller of the two counts.
    """
    num_discordant, smaller = num_only_first + num_only_second, min(num_only_first, num_only_second)
    tail = sum(math.comb(num_discordant, count) for count in range(smaller + 1))
    return min(1.0, 2 * tail / 2**num_discordant)


def paired_bootstrap_interval(
    first: Sequence[bool], second: Sequence[bool], clusters: Sequence[str], seed: int
) -> tuple[float, float]:
    """95 % percentile interval of the difference of shares, whole clusters drawn with replacement."""
    _, cluster_of = np.unique(np.asarray(clusters), return_inverse=True)
    num_clusters = int(cluster_of.max()) + 1
    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    sum_C = np.bincount(cluster_of, weights=differences, minlength=num_clusters)
    count_C = np.bincount(cluster_of, minlength=num_clusters)
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(NUM_RESAMPLES // RESAMPLES_AT_ONCE):
        times_RC = rng.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=RESAMPLES_AT_ONCE)
        resampled.append((times_RC @ sum_C) / (times_RC @ count_C))
    low, high = np.quantile(np.concatenate(resampled), QUANTILES)
    return float(low), float(high)
