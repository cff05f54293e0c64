"""Routing regret: how many more questions the best of G sampled routes answers than the top-K route.

Tokens are greedy throughout, so routes differ in their experts only.  The best of G is chosen knowing the answer: it is
a ceiling, not a way to answer, and it rises with G by luck alone (of 4 options, 8 blind guesses hit 90 %).
"""

import math
from collections.abc import Sequence
from typing import Any

from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.evaluation.accuracy import wilson_interval


def routing_regret(is_top_k_right: Sequence[bool], are_routes_right: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """Accuracy of the best of G sampled routes against the top-K route's.

    Args:
        is_top_k_right: of each example, the answer under deterministic top-K routing.
        are_routes_right: of each example, its G answers under sampled routing.
    Returns:
        top_k: accuracy of the top-K route, with its 95 % Wilson interval.
        mean_route: mean accuracy of single sampled routes.
        best_of_routes: share of examples that one of the G routes answers, with its interval.
        regret: best_of_routes - top_k.  Below 0 if routes lose more than they rescue.
        rescued: share with a wrong top-K answer and a right route; `lost`: the reverse.  regret = rescued - lost.
        best_of_by_routes: expected share for 1, 2, ..., G of the routes, each subset alike:
            mean of 1 - C(G - c, g) / C(G, g), with c right routes of G.
    Raises:
        DataError: no example, or groups of different or no size.
    """
    sizes = {len(routes) for routes in are_routes_right}
    if len(is_top_k_right) != len(are_routes_right) or len(sizes) != 1 or sizes == {0}:
        raise DataError(
            "routing regret needs one top-K answer and equally many routes for each example",
            got=f"{len(is_top_k_right)} answers, {len(are_routes_right)} groups of {sorted(sizes)} routes",
        )
    (num_routes,), num_examples = sizes, len(is_top_k_right)
    num_right = [sum(routes) for routes in are_routes_right]
    pairs = list(zip(is_top_k_right, num_right, strict=True))
    num_top_k, num_best = sum(is_top_k_right), sum(count > 0 for count in num_right)
    return {
        "num_examples": num_examples,
        "num_routes": num_routes,
        "top_k": num_top_k / num_examples,
        "top_k_interval": list(wilson_interval(num_top_k, num_examples)),
        "mean_route": sum(num_right) / num_routes / num_examples,
        "best_of_routes": num_best / num_examples,
        "best_of_routes_interval": list(wilson_interval(num_best, num_examples)),
        "regret": (num_best - num_top_k) / num_examples,
        "rescued": sum(not is_right and count > 0 for is_right, count in pairs) / num_examples,
        "lost": sum(is_right and count == 0 for is_right, count in pairs) / num_examples,
        "best_of_by_routes": [_best_of(drawn, num_routes, num_right) for drawn in range(1, num_routes + 1)],
    }


def _best_of(num_drawn: int, num_routes: int, num_right: Sequence[int]) -> float:
    total = math.comb(num_routes, num_drawn)
    misses = math.fsum(math.comb(num_routes - count, num_drawn) / total for count in num_right)
    return 1.0 - misses / len(num_right)
