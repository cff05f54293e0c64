"""Paired bootstrap and McNemar's test against scipy."""

import numpy as np
import pytest
from scipy import stats

from megatron_moe_grpo.errors import EvaluationError
from megatron_moe_grpo.evaluation.paired_tests import compare_paired, mcnemar_p_value, paired_bootstrap_interval


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 11), (11, 3), (7, 7), (0, 40), (412, 530)])
def test_mcnemar_p_value_is_scipys_binomial_test(first: int, second: int) -> None:
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar_p_value(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_p_value_by_hand() -> None:
    # 1 against 5: 2 (1 + 6) / 64.
    assert mcnemar_p_value(1, 5) == 14 / 64


def outcomes(num_examples: int, seed: int) -> tuple[list[bool], list[bool]]:
    rng = np.random.default_rng(seed)
    first = rng.random(num_examples) < 0.5
    second = np.where(rng.random(num_examples) < 0.7, first, rng.random(num_examples) < 0.8)
    return first.tolist(), second.tolist()


def test_bootstrap_interval_is_scipys_without_clusters() -> None:
    first, second = outcomes(300, seed=1)
    differences = np.asarray(second, float) - np.asarray(first, float)
    expected = stats.bootstrap(
        (differences,), np.mean, n_resamples=10_000, method="percentile", random_state=0, batch=1000
    ).confidence_interval
    found = paired_bootstrap_interval(first, second, [str(index) for index in range(300)], seed=0)
    # Two draws of 10,000 differ at the ends by 0.0033 at most (measured, 20 seeds); differences are steps of 1/300.
    assert found == pytest.approx(tuple(expected), abs=0.007)


def test_bootstrap_interval_of_clusters_is_that_of_their_sums() -> None:
    first, second = outcomes(100, seed=2)
    single = paired_bootstrap_interval(first, second, [str(index) for index in range(100)], seed=0)
    # Each example three times, in one cluster: nothing new was seen, so nothing is known better.
    names = [str(index) for index in range(100) for _ in range(3)]
    tripled = [outcome for outcome in first for _ in range(3)], [outcome for outcome in second for _ in range(3)]
    assert paired_bootstrap_interval(*tripled, names, seed=0) == pytest.approx(single, abs=0.012)
    alone = paired_bootstrap_interval(*tripled, [str(index) for index in range(300)], seed=0)
    assert alone[1] - alone[0] < 0.7 * (single[1] - single[0])


def test_compare_paired_counts_the_discordant() -> None:
    first, second = [True, True, False, False, True], [True, False, True, True, True]
    found = compare_paired(first, second, list("abcde"))
    assert (found.difference, found.num_only_first, found.num_only_second) == (0.2, 1, 2)
    assert (found.p_value, found.low <= 0.2 <= found.high) == (1.0, True)


def test_equal_models_do_not_differ() -> None:
    found = compare_paired([True, False] * 20, [True, False] * 20, [str(index) for index in range(40)])
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_compare_paired_refuses_other_lengths() -> None:
    with pytest.raises(EvaluationError, match="not paired"):
        compare_paired([True], [True, False], ["a", "b"])
    with pytest.raises(EvaluationError, match="not paired"):
        compare_paired([], [], [])
