"""Qwen2-VL under every parallel axis equals one process: rollouts, losses and gradients with M-RoPE and a video."""

from pathlib import Path

import pytest
import torch
from one_step import Objective, join_data_ranks
from parallel_runs import ParallelRuns
from parallel_step import QWEN, QWEN_CASES, QWEN_TIED
from qwen_policy import make_qwen_rows
from test_parallel_equals_one_process import CLOSE, EXACT, References, gradient_gap, largest_metric_gap
from tiny_policy import Bench

from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.models.qwen2_vl.processing import Qwen2VLProcessing


@pytest.fixture(scope="module")
def references(one_process: ParallelLayout, parallel_runs: ParallelRuns, pictures: list[Path]) -> References:
    # Tied or not, the tokenizer and processor files are the same.
    assets = parallel_runs.checkpoints / QWEN.checkpoint_name / "assets"
    processing = Qwen2VLProcessing.from_folder(assets)
    return References(Bench(one_process, assets, processing, make_qwen_rows(pictures, processing)), parallel_runs)


@pytest.mark.parametrize("name", QWEN_CASES)
def test_qwen2_vl_step_equals_one_process(
    name: str, references: References, parallel_runs: ParallelRuns, one_process: ParallelLayout
) -> None:
    expected, expected_gradient = references.of(QWEN_CASES[name].objective)
    ranks = parallel_runs.outcomes(name)
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
    assert gradient_gap(parallel_runs.gradient(name, one_process), expected_gradient) < (1e-5, "")


@pytest.mark.parametrize("objective", [QWEN, QWEN_TIED], ids=["untied", "tied"])
def test_the_qwen2_vl_step_has_something_to_compare(objective: Objective, references: References) -> None:
    """Vision tower, biases and routers all have a gradient, and replay meets the rollout."""
    outcome, gradient = references.of(objective)
    assert ("language_model.output_layer.weight" in gradient) != objective.ties_embeddings
    for part in ("vision_tower.patch_embed", "projector.mlp.2.bias", "linear_qkv.bias", ".router.weight"):
        assert max(float(grad.abs().max()) for name, grad in gradient.items() if part in name) > 1e-3, part
    assert outcome.rollouts["reward_B"].unique().numel() > 2
    # Measured: 5e-7 nats.
    assert outcome.metrics["rollout_train_logprob_gap"] < 1e-5
    assert outcome.later_metrics["rollout_train_logprob_gap"] > 1e-3
