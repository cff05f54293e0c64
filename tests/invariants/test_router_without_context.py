"""Megatron's own TopKRouter as the oracle: without a context, and for deterministic top-K, ours gives what it gives."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.router import TopKRouter
from tiny_policy import ROUTING_MATTERS, Bench, load_policy, write_policy

from megatron_moe_grpo.mcore.moe_layers import router_sizes
from megatron_moe_grpo.mcore.routing_context import RoutingContext, SelectionPolicy
from megatron_moe_grpo.mcore.stochastic_router import stochastic_routers
from megatron_moe_grpo.routing.trace import RouteMode


@pytest.fixture(scope="module", params=[False, True], ids=["softmax_over_all", "renormalised"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("router"), replace(ROUTING_MATTERS, renormalise=request.param))


@pytest.mark.parametrize("has_context", [False, True], ids=["no_context", "top_k_context"])
def test_router_equals_megatrons_top_k_router(bench: Bench, folder: Path, has_context: bool) -> None:
    router = stochastic_routers(load_policy(folder))[1]
    oracle = TopKRouter(config=router.config, pg_collection=ProcessGroupCollection.use_mpu_process_groups())
    oracle.load_state_dict(router.state_dict())
    hidden_SBD = torch.randn(7, 3, router.config.hidden_size, requires_grad=True)
    if has_context:
        everything_BS = torch.ones(3, 7, dtype=torch.bool)
        # Sampling settings must not matter to the deterministic choice or to the weights.
        sizes = router_sizes(router.config)
        policy = SelectionPolicy(temperature=0.5, noise_std=3.0)
        router.context = RoutingContext(RouteMode.TOP_K, everything_BS, ~everything_BS, sizes, policy=policy)
    probs_MN, map_MN = router(hidden_SBD)
    expected_probs_MN, expected_map_MN = oracle(hidden_SBD)
    assert torch.equal(map_MN, expected_map_MN)
    assert (probs_MN - expected_probs_MN).abs().max() < 1e-7  # Measured: 0.
    direction = torch.randn_like(probs_MN)
    got, expected = (
        torch.autograd.grad((probs * direction).sum(), (hidden_SBD, module.weight))
        for probs, module in ((probs_MN, router), (expected_probs_MN, oracle))
    )
    assert all((a - b).abs().max() < 1e-6 for a, b in zip(got, expected, strict=True))
    is_renormalised = not router.config.moe_router_pre_softmax
    sums_M = probs_MN.sum(dim=1)
    assert torch.allclose(sums_M, torch.ones_like(sums_M)) == is_renormalised
