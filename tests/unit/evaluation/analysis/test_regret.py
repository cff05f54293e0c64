"""Routing regret: numbers worked by hand, the identity behind them, and what cannot be asked."""

from itertools import combinations

import pytest

from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.evaluation.analysis.regret import routing_regret

# Top-K right, and which of three routes are right.
ROWS = [
    (True, [True, True, True]),
    (True, [False, False, False]),
    (False, [False, True, False]),
    (False, [True, True, False]),
    (False, [False, False, False]),
    (True, [True, False, False]),
]
IS_RIGHT, ROUTES = [right for right, _ in ROWS], [routes for _, routes in ROWS]


def test_routing_regret_by_hand() -> None:
    found = routing_regret(IS_RIGHT, ROUTES)
    assert (found["num_examples"], found["num_routes"]) == (6, 3)
    # Top-K answers 3 of 6; one of the routes answers all rows but the second and the fifth.
    assert found["top_k"] == pytest.approx(3 / 6)
    assert found["best_of_routes"] == pytest.approx(4 / 6)
    assert found["mean_route"] == pytest.approx((3 + 0 + 1 + 2 + 0 + 1) / 18)
    assert found["rescued"] == pytest.approx(2 / 6)
    assert found["lost"] == pytest.approx(1 / 6)
    assert found["regret"] == pytest.approx(found["rescued"] - found["lost"]) == pytest.approx(1 / 6)


def test_routing_regret_curve_is_the_mean_over_all_subsets_of_routes() -> None:
    expected = [
        sum(any(routes[i] for i in drawn) for routes in ROUTES for drawn in combinations(range(3), size))
        / (6 * len(list(combinations(range(3), size))))
        for size in (1, 2, 3)
    ]
    found = routing_regret(IS_RIGHT, ROUTES)
    assert found["best_of_by_routes"] == pytest.approx(expected, abs=1e-12)
    assert found["best_of_by_routes"][0] == pytest.approx(found["mean_route"])
    assert found["best_of_by_routes"][-1] == pytest.approx(found["best_of_routes"])


def test_routing_regret_may_be_negative_and_is_zero_for_equal_routes() -> None:
    assert routing_regret([True], [[False, False]])["regret"] == -1.0
    same = routing_regret([True, False], [[True, True], [False, False]])
    assert (same["regret"], same["rescued"], same["lost"]) == (0.0, 0.0, 0.0)
    assert same["best_of_by_routes"] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("is_right", "routes"), [([], []), ([True], []), ([True], [[]]), ([True, True], [[True], [True, False]])]
)
def test_routing_regret_refuses_what_it_cannot_compare(is_right: list[bool], routes: list[list[bool]]) -> None:
    with pytest.raises(DataError, match="equally many routes"):
        routing_regret(is_right, routes)
