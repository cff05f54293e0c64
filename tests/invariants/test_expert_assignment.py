"""Expert Choice and Sinkhorn in a Megatron model: routes, outputs, and steps that expert parallelism does not change.

Both look at all tokens of a micro-batch, so the split into micro-batches is part of the method: what must not change
anything is how many ranks the same micro-batches are spread over.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from forked_commands import run_command
from megatron.core.transformer.moe.moe_layer import MoELayer
from tiny_policy import NUM_ACTIVE, NUM_EXPERTS, ROUTING_MATTERS, Bench, load_policy, write_policy
from tiny_training import TinyStart, expect_success, read_lines, recipe, tiny_start, write_recipe
from torch import Tensor

from megatron_moe_grpo.losses.load_balancing import expert_fractions
from megatron_moe_grpo.mcore.moe_layers import router_sizes
from megatron_moe_grpo.mcore.routing_context import BalanceTerm, RoutingContext, SelectionPolicy
from megatron_moe_grpo.mcore.stochastic_router import StochasticRouter
from megatron_moe_grpo.routing.trace import RouteMode

Assignment = Literal["policy", "expert_choice", "sinkhorn"]
NUM_POSITIONS, NUM_SEQUENCES, NUM_PADDED = 9, 3, 4


@pytest.fixture(scope="module", params=[False, True], ids=["softmax_over_all", "renormalised"])
def layer(request: pytest.FixtureRequest, bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> MoELayer:
    folder = write_policy(tmp_path_factory.mktemp("assigned"), replace(ROUTING_MATTERS, renormalise=request.param))
    return next(module for module in load_policy(folder).modules() if isinstance(module, MoELayer))


def context_of(router: StochasticRouter, assignment: Assignment, mode: RouteMode = RouteMode.SAMPLE) -> RoutingContext:
    """Three sequences; the second is padded on the left."""
    is_real_BS = torch.ones(NUM_SEQUENCES, NUM_POSITIONS, dtype=torch.bool)
    is_real_BS[1, :NUM_PADDED] = False
    return RoutingContext(
        mode, is_real_BS, torch.zeros_like(is_real_BS), router_sizes(router.config),
        policy=SelectionPolicy(guidance="none", assignment=assignment, sinkhorn_iterations=50),
    )  # fmt: skip


def hidden_states(layer: MoELayer) -> Tensor:
    """The third sequence is nine times the same token: C = 5, so that its last four are left without any expert."""
    shape = (NUM_POSITIONS, NUM_SEQUENCES, layer.config.hidden_size)
    hidden_SBD = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    hidden_SBD[:, 2] = hidden_SBD[0, 2].clone()
    return hidden_SBD


def route(layer: MoELayer, context: RoutingContext, hidden_SBD: Tensor) -> tuple[Tensor, Tensor]:
    layer.router.context = context
    probs_MN, map_MN = layer.router(hidden_SBD)
    layer.router.context = None
    return probs_MN.detach(), map_MN


def test_experts_have_equal_loads_and_padding_none(layer: MoELayer) -> None:
    context = context_of(layer.router, "expert_choice")
    probs_MN, map_MN = route(layer, context, hidden_states(layer))
    is_real_M = context.is_real_BS.T.flatten()
    assert map_MN.sum(dim=0).tolist() == [int(is_real_M.sum()) * NUM_ACTIVE // NUM_EXPERTS] * NUM_EXPERTS
    assert not map_MN[~is_real_M].any()
    assert torch.equal(probs_MN > 0, map_MN)
    num_experts_M = map_MN.sum(dim=1)[is_real_M]
    assert num_experts_M.unique().numel() > 2
    (num_without,) = context.num_without_expert_by_layer.values()
    assert int(num_without) == int((num_experts_M == 0).sum()) >= 4


@pytest.mark.parametrize("assignment", ["expert_choice", "sinkhorn"])
def test_layer_output_is_the_weighted_sum_of_the_experts(assignment: Assignment, layer: MoELayer) -> None:
    """Megatron's dispatcher was made for K experts a token: here it is any number, and none gives exactly 0."""
    hidden_SBD = hidden_states(layer)
    context = context_of(layer.router, assignment)
    probs_MN, _ = route(layer, context, hidden_SBD)
    layer.router.context = context
    output_SBD, _ = layer(hidden_SBD)
    layer.router.context = None
    hidden_MD, expected_MD = hidden_SBD.flatten(0, 1), torch.zeros_like(hidden_SBD).flatten(0, 1)
    for index, expert in enumerate(layer.experts.local_experts):
        gate_MF, up_MF = (hidden_MD @ expert.linear_fc1.weight.T).chunk(2, dim=1)
        inner_MF = torch.nn.functional.silu(gate_MF) * up_MF
        expected_MD = expected_MD + probs_MN[:, index, None] * (inner_MF @ expert.linear_fc2.weight.T)
    scale = expected_MD.abs().max()
    assert (output_SBD.flatten(0, 1) - expected_MD).abs().max() < 1e-5 * scale  # Measured: 3e-7.
    is_empty_M = probs_MN.sum(dim=1) == 0
    assert (output_SBD.flatten(0, 1)[is_empty_M] == 0).all()
    assert is_empty_M.any() == (assignment == "expert_choice")


def test_sinkhorn_equals_megatrons_own_router(layer: MoELayer) -> None:
    """Without padding, which Megatron's does not know."""
    hidden_SBD = hidden_states(layer)
    context = context_of(layer.router, "sinkhorn")
    context.is_real_BS = torch.ones_like(context.is_real_BS)
    probs_MN, map_MN = route(layer, context, hidden_SBD)
    logits_MN = layer.router.gating(hidden_SBD).flatten(0, 1)
    expected_probs_MN, expected_map_MN = layer.router.sinkhorn_load_balancing(logits_MN)
    if not layer.config.moe_router_pre_softmax:
        # Megatron's weights are those of the softmax over all experts only.
        expected_probs_MN = expected_probs_MN / expected_probs_MN.sum(dim=1, keepdim=True)
    assert torch.equal(map_MN, expected_map_MN)
    assert (probs_MN - expected_probs_MN).abs().max() < 1e-6  # Measured: 0.
    _, top_k_map_MN = route(layer, context_of(layer.router, "policy"), hidden_SBD)
    assert not torch.equal(map_MN, top_k_map_MN)


@pytest.mark.parametrize("assignment", ["expert_choice", "sinkhorn"])
def test_inference_takes_the_top_k(assignment: Assignment, layer: MoELayer) -> None:
    hidden_SBD = hidden_states(layer)
    got = route(layer, context_of(layer.router, assignment, RouteMode.TOP_K), hidden_SBD)
    expected = route(layer, context_of(layer.router, "policy", RouteMode.TOP_K), hidden_SBD)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("counts_sampled", [True, False])
def test_balance_of_expert_choice_counts_what_was_asked(counts_sampled: bool, layer: MoELayer) -> None:
    """Of the experts that were used it is 1 whatever the router does; of the top-K, which inference takes, not."""
    context = context_of(layer.router, "expert_choice")
    is_real_M = context.is_real_BS.T.flatten()
    context.balance = BalanceTerm(None, context.is_real_BS / context.is_real_BS.sum(), 1.0, counts_sampled)
    hidden_SBD = hidden_states(layer)
    route(layer, context, hidden_SBD)
    (loss,) = context.balance_loss_by_layer.values()
    logits_MN = layer.router.gating(hidden_SBD).flatten(0, 1).detach()
    fraction_N = torch.full((NUM_EXPERTS,), 1 / NUM_EXPERTS)
    if not counts_sampled:
        fraction_N = expert_fractions(logits_MN.topk(NUM_ACTIVE).indices, NUM_EXPERTS, is_real_M)
    expected = NUM_EXPERTS * (fraction_N * logits_MN.softmax(dim=1)[is_real_M].mean(dim=0)).sum()
    assert float(loss) == pytest.approx(float(expected), abs=1e-6)
    assert (abs(float(loss) - 1) < 1e-6) == counts_sampled


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> TinyStart:
    return tiny_start(tmp_path_factory.getbasetemp() / "tiny_start")


def steps_of(assignment: Assignment, num_ranks: int, start: TinyStart, folder: Path) -> list[dict[str, float]]:
    """Two steps of supervised training, two micro-batches of two rows each; with two ranks, one on each."""
    name = f"{assignment}_{num_ranks}"
    values = recipe(start, "sft", folder, name) | {"parallel": {"expert": num_ranks}}
    values["training"] = {"steps": 2, "prompts_per_step": 4, "micro_batch_prompts": 2}
    values["routing"] = {"guidance": "none", "assignment": assignment}
    values["losses"] = {"router_z_coefficient": 0.1, "load_balancing_coefficient": 0.1}
    expect_success(
        run_command(["train", write_recipe(values, folder / f"{name}.yaml")], folder / f"log_{name}", num_ranks)
    )
    return read_lines(folder / name / "metrics.jsonl")[1:]


@pytest.mark.parametrize("assignment", ["expert_choice", "sinkhorn"])
def test_expert_parallel_steps_equal_one_process(assignment: Assignment, start: TinyStart, tmp_path: Path) -> None:
    alone, together = (steps_of(assignment, num_ranks, start, tmp_path) for num_ranks in (1, 2))
    assert [line["step"] for line in alone] == [1, 2]
    for one, two in zip(alone, together, strict=True):
        assert one.keys() == two.keys() >= {"router_z_loss", "grad_norm"}
        assert all(math.isfinite(value) for value in one.values() if isinstance(value, float))
        numbers = {name: value for name, value in one.items() if isinstance(value, float)}
        assert {name: two[name] for name in numbers} == pytest.approx(numbers, rel=1e-5, abs=1e-7)  # Measured: 3e-7.
    assert alone[0]["grad_norm"] > 0
    assert ("tokens_without_expert" in alone[0]) == (assignment == "expert_choice")
