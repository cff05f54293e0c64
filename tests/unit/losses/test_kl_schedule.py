from itertools import pairwise

import pytest

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.losses.kl_schedule import ConstantKl, DynamicKl

# The paper's counting run over 100 steps.
COUNTING = DynamicKl(beta_min=0.04, beta_max=0.1, exploration_steps=30, total_steps=100)


@pytest.mark.parametrize("step, beta", [(0, 0.07), (15, 0.055), (30, 0.04), (65, 0.07), (100, 0.1), (150, 0.1)])
def test_dynamic_kl_by_hand(step, beta):
    assert COUNTING.beta_at(step) == pytest.approx(beta, abs=1e-12)


def test_dynamic_kl_falls_then_rises():
    betas = [COUNTING.beta_at(step) for step in range(101)]
    assert all(later < earlier for earlier, later in pairwise(betas[:31]))
    assert all(later > earlier for earlier, later in pairwise(betas[30:]))


def test_dynamic_kl_of_geometry_reaches_zero():
    geometry = DynamicKl(beta_min=0.0, beta_max=0.02, exploration_steps=0.3 * 10, total_steps=10)
    assert geometry.beta_at(3) == 0
    assert geometry.beta_at(0) == pytest.approx(0.01)


def test_constant_kl_never_changes():
    assert {ConstantKl(0.04).beta_at(step) for step in (0, 1, 10**6)} == {0.04}


def test_dynamic_kl_refuses_what_cannot_be_scheduled():
    with pytest.raises(ConfigError, match="out of order"):
        DynamicKl(beta_min=0.1, beta_max=0.04, exploration_steps=30, total_steps=100)
    for exploration_steps in (0, 100):
        with pytest.raises(ConfigError, match="Exploration"):
            DynamicKl(beta_min=0.04, beta_max=0.1, exploration_steps=exploration_steps, total_steps=100)
