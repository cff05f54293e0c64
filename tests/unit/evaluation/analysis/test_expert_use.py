"""Sections of expert use, against values worked by hand and SciPy's divergence."""

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.evaluation.analysis.expert_use import task_section, utilisation_section

COUNTS_LN = torch.tensor([[1.0, 3.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])


def test_utilisation_section_by_hand() -> None:
    found = utilisation_section(COUNTS_LN)
    assert found["share_LN"] == [[0.25, 0.75, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]
    # -(1/4 ln 1/4 + 3/4 ln 3/4) = 0.5623351446, ln 4 = 1.3862943611; mean 0.9743147529.
    assert found["entropy_by_layer_nats"] == pytest.approx([0.5623351446, 1.3862943611], abs=1e-10)
    assert found["entropy_nats"] == pytest.approx(0.9743147529, abs=1e-10)
    assert found["even_entropy_nats"] == math.log(4)
    assert found["effective_experts"] == pytest.approx(2.6493516, abs=1e-6)
    assert found["unused_experts_by_layer"] == [2, 0]


def test_task_section_equals_scipy_pair_by_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = {name: torch.randint(1, 50, (3, 8), generator=generator).double() for name in ("a", "b", "c")}
    found = task_section(counts)
    for pair in found["pairs"]:
        first, second = (counts[name] / counts[name].sum(dim=1, keepdim=True) for name in pair["tasks"])
        # SciPy gives the square root, in nats by default.
        expected = sum(jensenshannon(first[layer], second[layer]) ** 2 for layer in range(3)) / 3
        assert pair["divergence_nats"] == pytest.approx(expected, abs=1e-12)
    assert [pair["tasks"] for pair in found["pairs"]] == [["a", "b"], ["a", "c"], ["b", "c"]]
    mean = sum(pair["divergence_nats"] for pair in found["pairs"]) / 3
    assert found["divergence_nats"] == pytest.approx(mean, abs=1e-12)
    assert sum(found["divergence_by_layer_nats"]) / 3 == pytest.approx(mean, abs=1e-12)


def test_task_section_of_disjoint_tasks_is_ln_2() -> None:
    found = task_section({"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([[0.0, 5.0]])})
    assert found["divergence_nats"] == pytest.approx(math.log(2), abs=1e-12)
    assert found["mean_share_N"] == {"a": [1.0, 0.0], "b": [0.0, 1.0]}


def test_task_section_takes_two_tasks() -> None:
    with pytest.raises(DataError, match="at least two tasks"):
        task_section({"a": COUNTS_LN})
