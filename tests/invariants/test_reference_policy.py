"""The reference is the start of training: at the start every token's KL is 0, afterwards it stays where it was."""

from pathlib import Path

import pytest
import torch
from tiny_policy import Bench, load_policy, trainable, update_settings, write_assets
from torch import Tensor

from megatron_moe_grpo.config.schema import DataConfig, ModelConfig, RunConfig, TrainingConfig
from megatron_moe_grpo.mcore.checkpoint import save_checkpoint
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.training.reference import ReferencePolicy, load_reference

# Measured: 1.9e-6, rounding between decoding token by token and one forward.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def start(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy as the checkpoint that training starts from."""
    folder = tmp_path_factory.mktemp("start")
    assets = write_assets(bench.folder, folder / "assets")
    save_checkpoint(folder / "checkpoint", load_policy(bench.folder), assets, {"step": 0})
    return folder / "checkpoint"


def reference_of(
    start: Path, bench: Bench, policy: VisionLanguageModel, freeze: tuple[str, ...] = ()
) -> ReferencePolicy:
    config = RunConfig(
        name="run",
        method="grpo",
        model=ModelConfig(checkpoint=str(start), freeze=freeze),
        data=DataConfig(train="rows.jsonl"),
        training=TrainingConfig(steps=1),
    )
    return load_reference(config, read_hf_config(start / "assets"), policy, bench.layout)


def response_gap(rollouts: RolloutBatch, logprob_BT: Tensor) -> float:
    gap_BT = (logprob_BT - rollouts.responses.token_logprob_BT).abs()
    return float(gap_BT[rollouts.responses.is_response_BT].max())


@pytest.mark.parametrize("micro_batch_prompts", [1, 4])
def test_reference_equals_the_policy_at_the_start(start: Path, bench: Bench, micro_batch_prompts: int) -> None:
    policy = load_policy(bench.folder)
    rollouts = bench.roll_out(policy)
    settings = update_settings(micro_batch_prompts=micro_batch_prompts)
    logprob_BT = reference_of(start, bench, policy).token_logprob_BT(rollouts, settings)
    assert response_gap(rollouts, logprob_BT) < TOLERANCE


def test_reference_stays_when_the_policy_moves(start: Path, bench: Bench) -> None:
    policy = load_policy(bench.folder)
    rollouts = bench.roll_out(policy)
    reference = reference_of(start, bench, policy)
    before_BT = reference.token_logprob_BT(rollouts, update_settings())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    moved = bench.roll_out(policy)
    assert torch.equal(reference.token_logprob_BT(rollouts, update_settings()), before_BT)
    assert response_gap(moved, reference.token_logprob_BT(moved, update_settings())) > 1e-2


def test_reference_shares_what_training_freezes_and_nothing_else(start: Path, bench: Bench) -> None:
    policy = load_policy(bench.folder)
    alone = reference_of(start, bench, policy)
    shared = reference_of(start, bench, policy, freeze=("vision_tower",))
    tower_bytes = sum(parameter.nbytes for parameter in policy.vision_tower.parameters())
    assert alone.own_bytes == sum(parameter.nbytes for parameter in policy.parameters())
    assert shared.own_bytes == alone.own_bytes - tower_bytes
    assert shared.model.vision_tower is policy.vision_tower
    assert shared.model.projector is not policy.projector


def test_reference_is_never_trained(start: Path, bench: Bench) -> None:
    trained = trainable(load_policy(bench.folder))
    reference = reference_of(start, bench, trained.module)
    rollouts = bench.roll_out(trained.module)
    assert not reference.token_logprob_BT(rollouts, update_settings()).requires_grad
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())
