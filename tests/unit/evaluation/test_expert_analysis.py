"""Expert use: values worked by hand, bounds, and counts that mean nothing."""

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.evaluation.expert_analysis import (
    expert_utilisation,
    layer_entropies_nats,
    mean_jensen_shannon_divergence_nats,
    utilisation_entropy_nats,
)


def test_expert_utilisation_divides_each_layer_by_its_own_total() -> None:
    utilisation_LN = expert_utilisation([[1, 3], [10, 10]])
    assert utilisation_LN.tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert utilisation_LN.dtype == torch.float64


def test_utilisation_entropy_of_even_use_is_ln_n() -> None:
    # Measured worst case 4e-16.
    assert utilisation_entropy_nats(torch.full((3, 8), 5)) == pytest.approx(math.log(8), abs=1e-14)


def test_utilisation_entropy_of_one_expert_is_zero() -> None:
    assert utilisation_entropy_nats([[7, 0, 0, 0]]) == 0.0


def test_utilisation_entropy_is_the_mean_over_layers_not_the_entropy_of_pooled_layers() -> None:
    # Layer 0 always takes expert 0, layer 1 always expert 1: each entropy is 0; pooled, it would be ln 2.
    assert utilisation_entropy_nats([[4, 0], [0, 4]]) == 0.0
    # 1/4, 3/4: -(1/4 ln 1/4 + 3/4 ln 3/4) = 0.5623351446; an even layer has ln 2 = 0.6931471806; mean 0.6277411626.
    counts_LN = [[1, 3], [2, 2]]
    assert layer_entropies_nats(counts_LN).tolist() == pytest.approx([0.5623351446, 0.6931471806], abs=1e-10)
    assert utilisation_entropy_nats(counts_LN) == pytest.approx(0.6277411626, abs=1e-10)


def test_divergence_of_tasks_that_use_experts_alike_is_zero() -> None:
    assert mean_jensen_shannon_divergence_nats({"a": [[1, 2, 3]], "b": [[10, 20, 30]]}) == 0.0


def test_divergence_of_tasks_without_a_common_expert_is_ln_2() -> None:
    counts = {"a": [[5, 1, 0, 0, 0, 0]], "b": [[0, 0, 1, 1, 0, 0]], "c": [[0, 0, 0, 0, 9, 1]]}
    assert mean_jensen_shannon_divergence_nats(counts) == pytest.approx(math.log(2), abs=1e-14)


def test_divergence_is_the_mean_over_layers_and_pairs() -> None:
    # Layer 0: a = b, c disjoint from both; layer 1: all alike.  Pairs (ab, ac, bc): 0, ln 2 / 2, ln 2 / 2.
    counts = {"a": [[1, 0], [1, 1]], "b": [[2, 0], [1, 1]], "c": [[0, 1], [1, 1]]}
    assert mean_jensen_shannon_divergence_nats(counts) == pytest.approx(math.log(2) / 3, abs=1e-14)


def test_divergence_agrees_with_scipy() -> None:
    a_LN, b_LN = torch.randint(0, 50, (2, 1, 8), generator=torch.Generator().manual_seed(1))
    # scipy returns the square root, in nats.
    expected = jensenshannon(a_LN[0].numpy(), b_LN[0].numpy()) ** 2
    assert expected > 0.05
    assert mean_jensen_shannon_divergence_nats({"a": a_LN, "b": b_LN}) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("counts_LN", [[[0, 0], [1, 1]], [[-1, 2]], [[float("nan"), 1]], [1, 2]])
def test_expert_utilisation_refuses_counts_without_meaning(counts_LN: list) -> None:
    with pytest.raises(DataError):
        expert_utilisation(counts_LN)


def test_divergence_takes_two_tasks_of_one_shape() -> None:
    with pytest.raises(DataError, match="two tasks"):
        mean_jensen_shannon_divergence_nats({"a": [[1, 2]]})
    with pytest.raises(DataError, match="one shape"):
        mean_jensen_shannon_divergence_nats({"a": [[1, 2]], "b": [[1, 2, 3]]})
