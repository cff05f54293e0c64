"""The papers' baselines and routing methods are one line of settings away from one recipe: each trains two steps."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from forked_commands import run_command
from tiny_training import TinyStart, expect_success, read_lines, recipe, write_recipe

from megatron_moe_grpo.training.run_log import scalars

TOP_K = ("routing.guidance=none",)
TOP_K_GRPO = (*TOP_K, "method=grpo", "losses.gate_coefficient=0", "rollout.token_temperature=1")
BASELINES: dict[str, tuple[str, ...]] = {
    # MoE-GRPO Table 1.
    "det_ft": ("method=sft", *TOP_K),
    "stoch_ft_multi": ("method=sft", "routing.guidance=multinomial"),
    "stoch_ft_noise": ("method=sft", "routing.guidance=noise"),
    "moe_grpo": (),
    # MoE-GRPO Table 5.
    "moe_grpo_noise": ("routing.guidance=noise",),
    # MoE-GRPO Table 7.
    "expert_choice": ("method=sft", *TOP_K, "routing.assignment=expert_choice"),
    "sinkhorn": ("method=sft", *TOP_K, "routing.assignment=sinkhorn"),
    "moe_grpo_without_balance": ("losses.load_balancing_coefficient=0",),
    # Ours.
    "stoch_ft_multi_balance_of_top_k": (
        "method=sft", "routing.guidance=multinomial", "losses.load_balancing_counts=top_k",
    ),
    "balance_of_top_k": ("losses.load_balancing_counts=top_k",),
    "router_z": ("losses.router_z_coefficient=0.001",),
    "grpo_top_k": TOP_K_GRPO,
    "frozen_router": ("method=sft", *TOP_K, "model.freeze=[router]"),
    "frozen_router_grpo": (*TOP_K_GRPO, "model.freeze=[router]"),
}  # fmt: skip


class Runs:
    """Each baseline once, the first time somebody asks for it."""

    def __init__(self, start: TinyStart, folder: Path) -> None:
        self.steps = cache(self._steps)
        self._start, self._folder = start, folder

    def _steps(self, name: str) -> list[dict[str, Any]]:
        values = recipe(self._start, "moe_grpo", self._folder, name)
        values["training"] = {"steps": 2, "prompts_per_step": 4, "micro_batch_prompts": 2}
        values["rollout"] = {"group_size": 4}
        del values["data"]["evaluation"]
        path = write_recipe(values, self._folder / f"{name}.yaml")
        settings = [text for setting in BASELINES[name] for text in ("--set", setting)]
        expect_success(run_command(["train", path, *settings], self._folder / f"log_{name}"))
        return read_lines(self._folder / name / "metrics.jsonl")[1:]


@pytest.fixture(scope="module")
def runs(start: TinyStart, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(start, tmp_path_factory.mktemp("baselines"))


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_trains(name: str, runs: Runs) -> None:
    steps = runs.steps(name)
    assert [line["step"] for line in steps] == [1, 2]
    assert all(math.isfinite(value) for line in steps for _, value in scalars(line))
    is_supervised = "method=sft" in BASELINES[name]
    assert all(("reward_mean" in line) != is_supervised for line in steps)
    if is_supervised:
        assert all(line["grad_norm"] > 0 for line in steps)


def test_routing_changes_the_supervised_loss(runs: Runs) -> None:
    names = ["det_ft", "stoch_ft_multi", "stoch_ft_noise", "expert_choice", "sinkhorn"]
    assert len({runs.steps(name)[0]["loss"] for name in names}) == len(names)


def test_a_frozen_router_starts_as_det_ft_and_learns_less(runs: Runs) -> None:
    frozen, det_ft = runs.steps("frozen_router"), runs.steps("det_ft")
    assert frozen[0]["loss"] == det_ft[0]["loss"]
    assert frozen[0]["grad_norm"] < det_ft[0]["grad_norm"]
    assert frozen[1]["loss"] != det_ft[1]["loss"]


def test_grpo_with_top_k_has_no_gate_loss_and_replays_exactly(runs: Runs) -> None:
    for name in ("grpo_top_k", "frozen_router_grpo"):
        first = runs.steps(name)[0]
        assert first["gate_loss"] == first["gate_clip_fraction"] == 0
        assert first["rollout_train_logprob_gap"] < 1e-5  # Measured: 1e-6.


def test_terms_are_logged_where_they_are_on(runs: Runs) -> None:
    for name in BASELINES:
        line = runs.steps(name)[0]
        assert ("router_z_loss" in line) == (name == "router_z")
        assert ("tokens_without_expert" in line) == (name == "expert_choice")
    assert runs.steps("moe_grpo_without_balance")[0]["load_balancing_loss"] == 0


def test_balance_counts_sampled_or_top_k_experts(runs: Runs) -> None:
    for sampled, top_k in [("moe_grpo", "balance_of_top_k"), ("stoch_ft_multi", "stoch_ft_multi_balance_of_top_k")]:
        losses = [runs.steps(name)[0]["load_balancing_loss"] for name in (sampled, top_k)]
        assert min(losses) > 0.9 and losses[0] != losses[1]
    # Each expert has the same share of the tokens: nothing to balance.
    assert runs.steps("expert_choice")[0]["load_balancing_loss"] == pytest.approx(1, abs=1e-6)
