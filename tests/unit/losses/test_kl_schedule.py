from itertools import pairwise

import pytest

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.losses.kl_schedule import AdaptiveKl, ConstantKl, DecayingKl, DynamicKl

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


@pytest.mark.parametrize(
    "step, linear, cosine",
    [(0, 0.1, 0.1), (25, 0.085, 0.0912132), (50, 0.07, 0.07), (100, 0.04, 0.04), (130, 0.04, 0.04)],
)
def test_decaying_kl_by_hand(step, linear, cosine):
    # cosine at a quarter: 0.04 + 0.06 * (1 + cos(pi / 4)) / 2
    assert DecayingKl(0.1, 0.04, 100, "linear").beta_at(step) == pytest.approx(linear, abs=1e-7)
    assert DecayingKl(0.1, 0.04, 100, "cosine").beta_at(step) == pytest.approx(cosine, abs=1e-7)


def test_decaying_kl_refuses_another_shape():
    with pytest.raises(ConfigError, match="Unknown shape"):
        DecayingKl(0.1, 0.04, 100, "cubic")


@pytest.mark.parametrize(
    "kl_nats, beta",
    [(0.02, 0.5), (0.03, 0.525), (0.01, 0.475), (1.0, 0.55), (0.0, 0.45)],
)
def test_adaptive_kl_by_hand(kl_nats, beta):
    # on target: unchanged; half above: + 5 %; far above and nothing at all: the largest change, 10 %
    assert AdaptiveKl(target_nats=0.02, adaptation=0.1).next_beta(0.5, kl_nats) == pytest.approx(beta)


def test_adaptive_kl_brings_a_policy_to_its_target():
    # A policy whose KL is 0.01 / beta: the weight must settle at 0.5, where that is 0.02.
    controller, beta = AdaptiveKl(target_nats=0.02, adaptation=0.1), 4.0
    for _ in range(100):
        beta = controller.next_beta(beta, 0.01 / beta)
    assert beta == pytest.approx(0.5, rel=1e-3)
