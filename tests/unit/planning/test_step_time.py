"""The estimate: worked by hand where nothing is exchanged, and the directions in which it must move."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_run import SETTINGS

from megatron_moe_grpo.benchmark.real_configs import REAL_CONFIGS
from megatron_moe_grpo.config.schema import ParallelConfig, RunConfig
from megatron_moe_grpo.planning.assumptions import Assumptions
from megatron_moe_grpo.planning.communication import update_forward
from megatron_moe_grpo.planning.flops import forward_flops
from megatron_moe_grpo.planning.hardware import GPUS, Machine
from megatron_moe_grpo.planning.layout import Layout
from megatron_moe_grpo.planning.memory import PlannedRun
from megatron_moe_grpo.planning.search import plan_layout, search_layouts
from megatron_moe_grpo.planning.step_time import StepTime, step_time
from megatron_moe_grpo.planning.workload import make_workload, pictures_of_size

H100 = Machine(GPUS["h100-80g"])
NO_LAUNCHES = Assumptions(layer_launch_s=0.0, expert_imbalance=1.0)


def planned(prompts: int, **settings: Any) -> PlannedRun:
    hf_config = REAL_CONFIGS["internvl3.5-1b-upcycled"]()
    training = {"steps": 1, "prompts_per_step": prompts, "micro_batch_prompts": 1}
    config = RunConfig.model_validate(SETTINGS | {"training": training, "precision": "bf16"} | settings)
    return PlannedRun.of(
        config, hf_config, make_workload(config, 512, None, pictures_of_size(hf_config, 1, 448, 448), "test")
    )


def estimate(world: int, assumptions: Assumptions = NO_LAUNCHES, machine: Machine = H100, **parallel: Any) -> StepTime:
    layout = Layout(ParallelConfig(**parallel), world)
    return step_time(planned(world), layout, machine, assumptions)


def test_update_of_one_rank_by_hand() -> None:
    """Three forwards' operations at 35 % of 989 TFLOP/s; alone, nothing is sent."""
    run, layout = planned(1), Layout(ParallelConfig(), 1)
    flops = forward_flops(run, layout, 0, update_forward(run, layout)).total
    assert step_time(run, layout, H100, NO_LAUNCHES).update_s == pytest.approx(3 * flops / (0.35 * 989e12))


def test_decoding_of_one_rank_by_hand() -> None:
    """Each further token reads all decoder weights (8 experts, nearly all chosen by some token) and the cache."""
    run, layout = planned(1), Layout(ParallelConfig(), 1)
    one, two = (step_time(replace_new_tokens(run, count), layout, H100, NO_LAUNCHES).rollout_s for count in (100, 101))
    # 28 layers with 8 experts of 9.4 M and 4 x 2 x 1024^2 + 2 x 2 x 1024^2 of attention, and the output layer.
    experts, attention = 28 * 8 * 3 * 1024 * 3072, 28 * (1024 * 4096 + 2048 * 1024)
    read = 2 * (experts * (1 - 0.75**3) + attention + 151936 * 1024)
    assert (two - one) == pytest.approx(read / (0.6 * 3350e9), rel=0.1)


def replace_new_tokens(run: PlannedRun, count: int) -> PlannedRun:
    return replace(run, workload=replace(run.workload, new_tokens=count))


def test_estimate_moves_in_the_right_directions() -> None:
    plain = estimate(64, expert=8)
    assert estimate(64, expert=8, recompute="full").update_s > plain.update_s
    slow = replace(H100, gpu=replace(H100.gpu, link_bytes_per_s=45e9))
    assert estimate(64, machine=slow, expert=8).update_s > plain.update_s
    # Experts on two nodes: their tokens go over the network.
    assert estimate(64, machine=replace(H100, gpus_per_node=4), expert=8).update_s > plain.update_s
    assert estimate(64, pipeline=2).bubble_s > estimate(64).bubble_s == 0
    launching = replace(NO_LAUNCHES, layer_launch_s=0.1)
    assert estimate(64, assumptions=launching).rollout_s > plain.rollout_s


def test_search_keeps_what_fits_and_sorts_it() -> None:
    run = planned(16)
    result = search_layouts(run, 16, H100, NO_LAUNCHES)
    assert result.fitting
    small = replace(H100, gpu=replace(H100.gpu, memory_bytes=24e9))
    fewer = search_layouts(run, 16, small, NO_LAUNCHES)
    assert 0 < len(fewer.fitting) < len(result.fitting)
    assert len(fewer.fitting) + len(fewer.too_large) == len(result.fitting) + len(result.too_large)
    assert all(plan.needed_bytes <= 24e9 for plan in fewer.fitting)
    assert all(plan.needed_bytes > 24e9 for plan in fewer.too_large)
    times = [plan.time.total_s for plan in fewer.fitting]
    assert times == sorted(times)
    assert plan_layout(run, fewer.fitting[0].layout, small, NO_LAUNCHES).needed_bytes == fewer.fitting[0].needed_bytes


def test_pictures_of_size_by_hand() -> None:
    """InternVL: a tile of 448 is 256 tokens; two tiles bring a thumbnail.  Qwen2-VL: a token for 28 x 28 pixels."""
    internvl, qwen = REAL_CONFIGS["internvl3.5-1b"](), REAL_CONFIGS["qwen2-vl-2b"]()
    assert pictures_of_size(internvl, 1, 448, 448).num_tokens == 256
    assert pictures_of_size(internvl, 2, 896, 448).num_tokens == 2 * 3 * 256
    assert pictures_of_size(internvl, 1, 448, 448).num_patches == 32 * 32 + 1
    assert pictures_of_size(qwen, 1, 1024, 768).num_tokens == 37 * 27
    assert pictures_of_size(qwen, 1, 1024, 768).num_patches == 4 * 37 * 27


def test_docs_name_every_gpu() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "plan.md").read_text(encoding="utf-8")
    assert [name for name in GPUS if f"`{name}`" not in text] == []
