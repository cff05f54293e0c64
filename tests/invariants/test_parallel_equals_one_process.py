"""No layout and no split changes a step: same rollouts, same losses, same gradients as one process.

Why the numbers can agree at all.  Selection noise is a function of (seed, layer, rollout, position), so the rollouts
are the same experts and tokens.  Every loss is a weighted sum over the tokens of the *global* batch,

    L = sum over data ranks d, micro-batches m, layers, tokens of  w * term,      w as if there were one batch.

Megatron's schedule divides a micro-batch's loss by the number of micro-batches M (and gives MoEAuxLossAutoScaler, which
carries the routers' terms, the same 1/M), and its data-parallel wrapper averages over D ranks: it computes
1/(M D) sum over d, m of grad(loss_dm).  Each loss_dm is therefore multiplied by M D.  Under sequence parallelism each
tensor-parallel rank's router adds the terms of its own positions, and Megatron *sums* router gradients over those
ranks; under pipeline parallelism each layer is on one stage only: neither needs a factor.  Expert weights see the
tokens of all expert-parallel ranks; Megatron scales their gradient by 1/D like the others.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from one_step import Objective, StepCase, StepOutcome, join_data_ranks, run_step
from parallel_runs import ParallelRuns
from parallel_step import CASES, DYNAMIC_SAMPLING
from tiny_policy import PROBLEMS, Bench, relative_gap
from torch import Tensor

from megatron_moe_grpo.config.schema import ParallelConfig

Reference = tuple[StepOutcome, dict[str, Tensor]]
EXACT = ("token_ids_BT", "is_response_BT", "reward_B", "experts_BSLK")
CLOSE = ("token_logprob_BT", "logprob_BSL")
ONE_PROCESS_SPLITS = {
    "micro_batches_of_2": StepCase(micro_batch_prompts=2),
    "micro_batches_of_1": StepCase(micro_batch_prompts=1),
    "one_prompt_a_forward": StepCase(prompts_per_forward=1),
    "recompute_full": StepCase(ParallelConfig(recompute="full"), micro_batch_prompts=2),
    "recompute_moe": StepCase(ParallelConfig(recompute="moe"), micro_batch_prompts=1),
}


class References:
    """One process, one micro-batch: computed once for each objective."""

    def __init__(self, bench: Bench, runs: ParallelRuns):
        self.bench, self._runs = bench, runs
        self._known: dict[Objective, Reference] = {}

    def checkpoint(self, objective: Objective) -> Path:
        return self._runs.checkpoints / objective.checkpoint_name

    def of(self, objective: Objective) -> Reference:
        if objective not in self._known:
            outcome, _, gradient = run_step(self.bench, StepCase(objective=objective), self.checkpoint(objective))
            self._known[objective] = outcome, gradient
        return self._known[objective]


@pytest.fixture(scope="module")
def references(bench: Bench, parallel_runs: ParallelRuns) -> Iterator[References]:
    return References(bench, parallel_runs)


def gradient_gap(got: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """Largest relative gap of any parameter and its name.

    Relative to the parameter's largest gradient, or to 1e-2 of the model's where that is more: what is smaller still
    carries the rounding of the activations (a key bias has gradient 0 by theory).
    """
    assert got.keys() == expected.keys()
    floor = 1e-2 * max(float(gradient.abs().max()) for gradient in expected.values())
    return max(
        (float((got[name] - gradient).abs().max()) / max(float(gradient.abs().max()), floor), name)
        for name, gradient in expected.items()
    )


def largest_metric_gap(got: dict[str, float], expected: dict[str, float]) -> tuple[float, str]:
    """Relative above 1, absolute below: token and gate losses are differences that cancel."""
    names = [name for name in expected if "gap" not in name and "deviation" not in name]
    assert got.keys() == expected.keys()
    return max((abs(got[name] - expected[name]) / max(1.0, abs(expected[name])), name) for name in names)


@pytest.mark.parametrize("name", CASES)
def test_rollouts_equal_one_process(name: str, references: References, parallel_runs: ParallelRuns) -> None:
    expected, _ = references.of(CASES[name].objective)
    ranks = parallel_runs.outcomes(name)
    by_data_rank = sorted({rank["data_rank"]: rank for rank in ranks}.items())
    joined = join_data_ranks([rank["rollouts"] for _, rank in by_data_rank])
    for fact in EXACT:
        assert torch.equal(joined[fact], expected.rollouts[fact]), fact
    for fact in CLOSE:
        assert (joined[fact] - expected.rollouts[fact]).abs().max() < 1e-5, fact
    for rank in ranks:
        assert torch.equal(rank["top_k_L2N"], expected.top_k_L2N)
    # Ranks that share their prompts (tensor, pipeline) must agree with each other, not only the one that was joined.
    if len(by_data_rank) == 1:
        assert all(torch.equal(ranks[0]["rollouts"][fact], ranks[1]["rollouts"][fact]) for fact in EXACT)


@pytest.mark.parametrize("name", CASES)
def test_losses_equal_one_process(name: str, references: References, parallel_runs: ParallelRuns) -> None:
    expected, _ = references.of(CASES[name].objective)
    for rank in parallel_runs.outcomes(name):
        assert largest_metric_gap(rank["metrics"], expected.metrics) < (1e-5, "")
        assert largest_metric_gap(rank["later_metrics"], expected.later_metrics) < (1e-5, "")
        assert rank["grad_norm"] == pytest.approx(expected.grad_norm, rel=1e-5)
        assert rank["replica_gap"] < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_one_process(name: str, references: References, parallel_runs: ParallelRuns) -> None:
    _, expected = references.of(CASES[name].objective)
    got = parallel_runs.gradient(name, references.bench.layout)
    assert gradient_gap(got, expected) < (1e-5, "")
    for router in (name for name in expected if ".router." in name):
        assert expected[router].abs().max() > 1e-2
        assert relative_gap(got[router], expected[router]) < 1e-5


@pytest.mark.parametrize("name", ONE_PROCESS_SPLITS)
def test_splits_of_one_process_change_nothing(name: str, references: References) -> None:
    case = ONE_PROCESS_SPLITS[name]
    expected, expected_gradient = references.of(case.objective)
    outcome, _, gradient = run_step(references.bench, case, references.checkpoint(case.objective))
    assert all(torch.equal(outcome.rollouts[fact], expected.rollouts[fact]) for fact in EXACT)
    assert largest_metric_gap(outcome.metrics, expected.metrics) < (1e-5, "")
    assert largest_metric_gap(outcome.later_metrics, expected.later_metrics) < (1e-5, "")
    assert gradient_gap(gradient, expected_gradient) < (1e-5, "")


def test_the_reference_step_has_something_to_compare(references: References) -> None:
    outcome, _ = references.of(Objective())
    lengths_B = outcome.rollouts["is_response_BT"].sum(dim=1)
    assert lengths_B.unique().numel() > 1
    assert outcome.rollouts["reward_B"].unique().numel() > 2
    # After one optimizer step ratios have moved, and the clip is active somewhere.
    assert outcome.later_metrics["rollout_train_logprob_gap"] > 1e-2
    assert outcome.later_metrics["token_clip_fraction"] > 0 and outcome.later_metrics["gate_clip_fraction"] > 0


def test_the_reference_of_dynamic_sampling_replaces_some_groups(references: References) -> None:
    outcome, _ = references.of(DYNAMIC_SAMPLING)
    assert 0 < outcome.metrics["groups_replaced"] < 1
    assert len(PROBLEMS) < outcome.metrics["prompts_drawn"] < len(PROBLEMS) * (1 + DYNAMIC_SAMPLING.extra_rounds)
