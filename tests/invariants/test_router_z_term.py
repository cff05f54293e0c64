"""The z-loss that routers hang on their outputs is ST-MoE Eq. 5 over the real tokens of the whole step.

That no parallel layout changes it is checked with the other terms, in test_parallel_equals_one_process.py.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from forked_commands import run_command
from replayed_logits import replayed_logits
from tiny_policy import SIZES, Bench, gradients, load_policy, relative_gap, trainable, update_settings
from tiny_training import UPCYCLING, TinyStart, expect_success, read_lines, recipe, tiny_start, write_recipe

from megatron_moe_grpo.config.schema import LossConfig
from megatron_moe_grpo.mcore.optimizer import TrainableModel
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.upcycle import upcycle_state
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.training.update import accumulate_gradients

COEFFICIENT = 0.3
"""Not 1 over the number of micro-batches: with that a forgotten factor would cancel another."""


@dataclass(frozen=True)
class ZStep:
    """Rollouts, and the update with nothing but the z-loss on."""

    bench: Bench
    trained: TrainableModel
    rollouts: RolloutBatch

    def run(self, micro_batch_prompts: int = 2) -> dict[str, float]:
        losses = LossConfig(
            token_coefficient=0.0,
            gate_coefficient=0.0,
            load_balancing_coefficient=0.0,
            router_z_coefficient=COEFFICIENT,
        )
        settings = update_settings(losses, micro_batch_prompts=micro_batch_prompts)
        no_advantage_B = torch.zeros(len(self.rollouts.stream_B))
        return accumulate_gradients(self.trained, self.bench.layout, self.rollouts, no_advantage_B, settings)


@pytest.fixture(scope="module")
def step(bench: Bench) -> ZStep:
    model = load_policy(bench.folder)
    return ZStep(bench, trainable(model), bench.roll_out(model))


def test_loss_and_gradient_equal_the_equation_by_hand(step: ZStep) -> None:
    metrics = step.run()
    attached = gradients(step.trained)
    replayed = replayed_logits(step.trained.module, step.rollouts)
    logits_LMN = replayed.logits_LBSN[:, replayed.batch.is_real_BS]
    total = logits_LMN.exp().sum(dim=-1).log().square().mean(dim=1).sum()
    assert metrics["router_z_loss"] * SIZES.layers == pytest.approx(total.item(), rel=1e-5)
    assert metrics["loss"] == pytest.approx(COEFFICIENT * total.item(), rel=1e-5)
    named = dict(step.trained.module.named_parameters())
    by_hand = torch.autograd.grad(COEFFICIENT * total, list(named.values()), allow_unused=True)
    largest = max(float(value.abs().max()) for value in attached.values())
    for (name, got), expected in zip(attached.items(), by_hand, strict=True):
        expected = torch.zeros_like(got) if expected is None else expected
        assert (got - expected).abs().max() < 1e-5 * largest, name
        if ".router." in name:
            assert relative_gap(got, expected) < 1e-5, name  # Measured: 2e-6.


def test_padding_and_micro_batches_do_not_count(step: ZStep) -> None:
    values = [step.run(micro_batch_prompts=size)["router_z_loss"] for size in (4, 2, 1)]
    assert values == pytest.approx(values[:1] * 3, rel=1e-6)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> TinyStart:
    return tiny_start(tmp_path_factory.getbasetemp() / "tiny_start")


def supervised_steps(
    start: TinyStart, folder: Path, micro_batch_prompts: int, checkpoint: Path | None = None
) -> list[dict[str, float]]:
    """Two steps of four rows, of different lengths, under the z-loss alone beside the answers'."""
    name = f"micro_batches_of_{micro_batch_prompts}"
    values = recipe(start, "sft", folder, name)
    values["model"] = {"checkpoint": str(checkpoint or start.warm)}
    values["training"] = {"steps": 2, "prompts_per_step": 4, "micro_batch_prompts": micro_batch_prompts}
    values["routing"] = {"guidance": "none"}
    values["losses"] = {"router_z_coefficient": COEFFICIENT, "load_balancing_coefficient": 0.0}
    del values["data"]["evaluation"]
    expect_success(run_command(["train", write_recipe(values, folder / f"{name}.yaml")], folder / f"log_{name}"))
    return read_lines(folder / name / "metrics.jsonl")[1:]


def test_supervised_steps_do_not_depend_on_micro_batches(start: TinyStart, tmp_path: Path) -> None:
    whole, parts = (supervised_steps(start, tmp_path, size) for size in (4, 1))
    for expected, got in zip(whole, parts, strict=True):
        assert got.pop("expert_load_share_LN") == expected.pop("expert_load_share_LN")
        assert got == pytest.approx(expected, rel=1e-5)  # Measured: 2e-7.
    assert whole[0]["router_z_loss"] > 1


def test_supervised_steps_count_every_token_once(start: TinyStart, tmp_path: Path) -> None:
    """Under routers of zeros, logsumexp is ln N at every token: their mean is that only if the weights add up to 1."""
    settings = replace(UPCYCLING, router_init_std=0.0)
    state, config = upcycle_state(read_hf_state(start.dense), read_hf_config(start.dense), settings)
    write_hf_folder(tmp_path / "moe", state, config, assets=start.dense)
    expect_success(run_command(["import", tmp_path / "moe", tmp_path / "checkpoint"], tmp_path / "log_import"))
    first, _ = supervised_steps(start, tmp_path, 2, tmp_path / "checkpoint")
    assert first["router_z_loss"] == pytest.approx(math.log(settings.num_experts) ** 2, rel=1e-6)
