"""Rates by hand, operations as the planner counts them (which torch's own counter confirms), and memory."""

import json
import mmap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_moe_grpo.config.schema import ParallelConfig, RunConfig
from megatron_moe_grpo.models.internvl.tiny import TinySizes, build_tiny_internvl
from megatron_moe_grpo.models.upcycle import upcycled_config
from megatron_moe_grpo.models.upcycle_settings import UpcycleSettings
from megatron_moe_grpo.planning.flops import Forward, forward_flops
from megatron_moe_grpo.planning.layout import Layout
from megatron_moe_grpo.planning.memory import PlannedRun
from megatron_moe_grpo.planning.workload import make_workload, pictures_of_rows
from megatron_moe_grpo.rollout.prompts import EncodedRow
from megatron_moe_grpo.training.model_flops import GPU_OF_DEVICE, ModelFlops, Passes, peak_flops
from megatron_moe_grpo.training.throughput import Throughput

SIZES = TinySizes(
    image_size=16, patch_size=4, vision_hidden_size=16, vision_layers=1, vision_heads=2, hidden_size=32, layers=2,
    heads=4, kv_heads=2, head_dim=8, ffn_size=24, max_positions=128,
)  # fmt: skip
VISION = 7
"""Token that stands for a part of a picture; InternVL's tiny one has 4 a tile."""
PICTURE = [VISION] * 4


def row(prompt_ids: list[int], answer_ids: list[int]) -> EncodedRow:
    read = SimpleNamespace(id="a", visuals=["one"] if VISION in prompt_ids else [])
    return EncodedRow(read, tuple(prompt_ids), tuple(answer_ids))


class OneRank:
    world_size, is_main, device = 1, True, torch.device("cpu")

    def maximum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


@pytest.fixture
def run(tmp_path: Path) -> SimpleNamespace:
    """What Throughput reads of a run: two prompts of 10 tokens, groups of 3, two updates."""
    assets = tmp_path / "assets"
    build_tiny_internvl(assets, SIZES, seed=0)
    path = assets / "config.json"
    path.write_text(json.dumps(upcycled_config(json.loads(path.read_text()), UpcycleSettings())))
    return SimpleNamespace(
        config=config(), layout=OneRank(), assets=assets, reference=None,
        processing=SimpleNamespace(vision_token_ids=(VISION,)),
        train_rows=[row([*PICTURE, 1, 2, 3, 4, 5, 6], [8, 9])] * 2,
    )  # fmt: skip


def config(**model: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "run", "method": "moe_grpo", "model": {"checkpoint": "none"} | model, "data": {"train": "none"},
            "training": {"steps": 1, "prompts_per_step": 2, "updates_per_rollout": 2}, "rollout": {"group_size": 3},
        }
    )  # fmt: skip


def planned(run: SimpleNamespace, num_sequences: int, length: int, num_prompts: int, num_logits: int) -> float:
    """The planner's operations of a forward pass."""
    hf_config = json.loads((run.assets / "config.json").read_text())
    pictures = pictures_of_rows(hf_config, run.train_rows, [VISION])
    plan = PlannedRun.of(run.config, hf_config, make_workload(run.config, 10, 2, pictures, "test"))
    batch = Forward(num_sequences, length, length, num_prompts, False, num_logits)
    return forward_flops(plan, Layout(ParallelConfig(), 1), 0, batch).total


def test_rollout_rates_by_hand(run: SimpleNamespace) -> None:
    seconds = {"rollout_s": 1.0, "reference_s": 0.0, "update_s": 3.0, "evaluate_s": 100.0}
    found = Throughput(run).of_rollouts(seconds, run.train_rows, {"response_tokens_mean": 2.0})
    assert {name: found[name] for name in seconds} == seconds
    assert found["samples_per_second"] == 2 / 4
    assert found["rollouts_per_second"] == 6 / 4
    # Six sequences of 10 + 2.
    assert found["tokens_per_second"] == 72 / 4
    # Rollout, and two updates of three forwards each; the last token is never fed; a group's picture is seen once.
    flops = planned(run, 6, 11, 2, 2) + 2 * 3 * planned(run, 6, 11, 2, 11)
    assert found["model_flops_per_second"] == pytest.approx(flops / 4)
    assert "model_flops_utilisation" not in found
    run.reference = "there is one"
    more = Throughput(run).of_rollouts(seconds, run.train_rows, {"response_tokens_mean": 2.0})
    assert more["model_flops_per_second"] == pytest.approx((flops + planned(run, 6, 11, 2, 11)) / 4)


def test_rollouts_that_dynamic_sampling_drew_count_as_work_and_not_as_samples(run: SimpleNamespace) -> None:
    metrics = {"response_tokens_mean": 2.0, "prompts_drawn": 3.0}
    found = Throughput(run).of_rollouts({"rollout_s": 1.0}, run.train_rows, metrics)
    assert (found["samples_per_second"], found["rollouts_per_second"], found["tokens_per_second"]) == (2, 9, 108)
    # Half as many rollouts again, and no more to update on.
    flops = 1.5 * planned(run, 6, 11, 2, 2) + 2 * 3 * planned(run, 6, 11, 2, 11)
    assert found["model_flops_per_second"] == pytest.approx(flops)


def test_answer_rates_by_hand(run: SimpleNamespace) -> None:
    found = Throughput(run).of_answers({"update_s": 2.0, "evaluate_s": 100.0}, run.train_rows)
    assert (found["samples_per_second"], found["tokens_per_second"]) == (1, 12)
    assert found["model_flops_per_second"] == pytest.approx(3 * planned(run, 2, 11, 2, 11) / 2)
    assert "rollouts_per_second" not in found


def test_only_seconds_end_like_seconds(run: SimpleNamespace) -> None:
    """experiments/results.py adds up whatever ends in _s."""
    found = Throughput(run).of_answers({"update_s": 2.0}, run.train_rows)
    assert [name for name in found if name.endswith("_s")] == ["update_s"]


def test_a_frozen_vision_tower_is_not_gone_through_backward(run: SimpleNamespace) -> None:
    hf_config = json.loads((run.assets / "config.json").read_text())
    passes = Passes(num_sequences=2, num_tokens=20, num_vision_tokens=8)
    trained, frozen = (
        ModelFlops(found, hf_config, run.train_rows, {VISION}) for found in (config(), config(freeze=["vision_tower"]))
    )
    vision = trained.forward(passes, 20) - trained.forward(replace(passes, num_vision_tokens=0), 20)
    assert vision > 0
    assert trained.update(passes) - frozen.update(passes) == pytest.approx(2 * vision)


def test_rows_without_pictures_need_no_tower(run: SimpleNamespace) -> None:
    hf_config = json.loads((run.assets / "config.json").read_text())
    text_only = [row([1, 2, 3], [8])]
    passes = Passes(num_sequences=1, num_tokens=3, num_vision_tokens=0)
    with_pictures, without = (ModelFlops(config(), hf_config, rows, {VISION}) for rows in (run.train_rows, text_only))
    assert without.update(passes) == with_pictures.update(passes) > 0


def test_peak_flops_knows_exact_names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(torch.device("cpu"), config()) is None
    for name, expected in (("NVIDIA H100 80GB HBM3", 989e12 / 16), ("NVIDIA H100 PCIe", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda"), config()) == expected
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert peak_flops(torch.device("cuda"), config().model_copy(update={"precision": "bf16"})) == 989e12
    assert len(GPU_OF_DEVICE) == 5


def test_memory_is_that_of_the_process(run: SimpleNamespace) -> None:
    throughput = Throughput(run)
    before = throughput.of_answers({"update_s": 1.0}, run.train_rows)
    # Fresh pages from the kernel: malloc may give memory that an earlier test has freed.
    held = mmap.mmap(-1, 50 << 20)
    held.write(b"x" * (50 << 20))
    after = throughput.of_answers({"update_s": 1.0}, run.train_rows)
    assert 45 << 20 < after["rss_bytes"] - before["rss_bytes"] < 70 << 20
    # The peak counts in pages, and is of the whole process so far.
    assert after["rss_peak_bytes"] >= after["rss_bytes"] - (1 << 20)
    held.close()
