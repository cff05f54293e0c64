"""Qwen2-VL under every parallel axis equals one process: rollouts, losses and gradients with M-RoPE and a video."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from one_step import StepCase, StepOutcome, join_data_ranks, run_step
from parallel_runs import ParallelRuns
from parallel_step import QWEN, QWEN_CASES
from qwen_policy import make_qwen_rows
from test_parallel_equals_one_process import CLOSE, EXACT, gradient_gap, largest_metric_gap
from tiny_policy import Bench
from torch import Tensor

from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.models.qwen2_vl.processing import Qwen2VLProcessing


@dataclass(frozen=True)
class Reference:
    """One process, one micro-batch."""

    outcome: StepOutcome
    gradient: dict[str, Tensor]


@pytest.fixture(scope="module")
def reference(one_process: ParallelLayout, parallel_runs: ParallelRuns, pictures: list[Path]) -> Reference:
    checkpoint = parallel_runs.checkpoints / QWEN.checkpoint_name
    processing = Qwen2VLProcessing.from_folder(checkpoint / "assets")
    bench = Bench(one_process, checkpoint / "assets", processing, make_qwen_rows(pictures, processing))
    outcome, _, gradient = run_step(bench, StepCase(objective=QWEN), checkpoint)
    return Reference(outcome, gradient)


@pytest.mark.parametrize("name", QWEN_CASES)
def test_qwen2_vl_step_equals_one_process(
    name: str, reference: Reference, parallel_runs: ParallelRuns, one_process: ParallelLayout
) -> None:
    expected, ranks = reference.outcome, parallel_runs.outcomes(name)
    by_data_rank = sorted({rank["data_rank"]: rank for rank in ranks}.items())
    joined = join_data_ranks([rank["rollouts"] for _, rank in by_data_rank])
    for fact in EXACT:
        assert torch.equal(joined[fact], expected.rollouts[fact]), fact
    for fact in CLOSE:
        assert (joined[fact] - expected.rollouts[fact]).abs().max() < 1e-5, fact
    for rank in ranks:
        assert torch.equal(rank["top_k_L2N"], expected.top_k_L2N)
        assert largest_metric_gap(rank["metrics"], expected.metrics) < (1e-5, "")
        assert largest_metric_gap(rank["later_metrics"], expected.later_metrics) < (1e-5, "")
        assert rank["grad_norm"] == pytest.approx(expected.grad_norm, rel=1e-5)
        assert rank["replica_gap"] < 1e-5
    assert gradient_gap(parallel_runs.gradient(name, one_process), reference.gradient) < (1e-5, "")


def test_the_qwen2_vl_step_has_something_to_compare(reference: Reference) -> None:
    """Vision tower, biases and routers all have a gradient, and replay meets the rollout."""
    for part in ("vision_tower.patch_embed", "projector.mlp.2.bias", "linear_qkv.bias", ".router.weight"):
        assert max(float(grad.abs().max()) for name, grad in reference.gradient.items() if part in name) > 1e-3, part
    assert reference.outcome.rollouts["reward_B"].unique().numel() > 2
    # Measured: 5e-7 nats.
    assert reference.outcome.metrics["rollout_train_logprob_gap"] < 1e-5
    assert reference.outcome.later_metrics["rollout_train_logprob_gap"] > 1e-3
