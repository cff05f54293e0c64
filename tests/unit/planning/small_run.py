"""A small real run to hold plans against: models whose sizes are all different, one step of rollouts and update."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

import megatron_moe_grpo.mcore  # noqa: F401  (the CPU platform, before anything of Megatron)
from megatron_moe_grpo.config.schema import RunConfig
from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.losses.advantages import group_advantages
from megatron_moe_grpo.mcore.optimizer import TrainableModel, freeze_parts, make_trainable
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.models.build import build_model
from megatron_moe_grpo.models.internvl.tiny import TinySizes as InternVLSizes
from megatron_moe_grpo.models.internvl.tiny import build_tiny_internvl
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.qwen2_vl.tiny import TinySizes as Qwen2VLSizes
from megatron_moe_grpo.models.qwen2_vl.tiny import build_tiny_qwen2_vl
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.models.upcycle import upcycled_config
from megatron_moe_grpo.models.upcycle_settings import UpcycleSettings
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.planning.memory import PlannedRun
from megatron_moe_grpo.planning.workload import make_workload, pictures_of_rows
from megatron_moe_grpo.rewards.judge import Judgement, Question
from megatron_moe_grpo.rollout.collect import StepRows, collect_rollouts, rollout_settings
from megatron_moe_grpo.rollout.prompts import EncodedRow, encode_rows
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.training.update import accumulate_gradients
from megatron_moe_grpo.training.update_batch import UpdateSettings

Family = Literal["internvl", "qwen2_vl"]
INTERNVL = InternVLSizes(
    image_size=32, patch_size=4, vision_hidden_size=24, vision_layers=2, vision_heads=2, hidden_size=48, layers=4,
    heads=4, kv_heads=2, head_dim=16, ffn_size=40, max_positions=256,
)  # fmt: skip
QWEN2_VL = Qwen2VLSizes(
    patch_size=4, min_pixels=1024, max_pixels=1024, vision_hidden_size=24, vision_layers=2, vision_heads=2,
    hidden_size=64, layers=4, heads=4, kv_heads=2, ffn_size=40, max_positions=256,
)  # fmt: skip
SETTINGS: dict[str, Any] = {
    "name": "small", "method": "moe_grpo", "model": {"checkpoint": "none"}, "data": {"train": "none"},
    "training": {"steps": 1, "prompts_per_step": 4, "micro_batch_prompts": 4},
    "rollout": {"group_size": 3, "max_new_tokens": 5, "prompts_per_forward": 4, "token_temperature": 1.0},
}  # fmt: skip


@dataclass(frozen=True)
class SmallRun:
    """A model on disk without weights, prompts with one picture each, and the plan of a step."""

    folder: Path
    hf_config: dict[str, Any]
    config: RunConfig
    processing: Processing
    rows: Sequence[EncodedRow]

    @property
    def planned(self) -> PlannedRun:
        """What the planner is told: sizes and lengths, nothing that is measured."""
        pictures = pictures_of_rows(self.hf_config, self.rows, self.processing.vision_token_ids)
        longest = max(len(row.prompt_ids) for row in self.rows)
        workload = make_workload(self.config, longest, None, pictures, "test")
        return PlannedRun.of(self.config, self.hf_config, workload, kernels="cpu")

    def build(self, layout: ParallelLayout) -> TrainableModel:
        """This rank's part with random weights, wrapped for training."""
        parallel, precision = self.config.parallel, self.config.precision
        torch.manual_seed(0)
        model = build_model(self.hf_config, parallel, precision, layout.is_first_stage, layout.is_last_stage)
        freeze_parts(model, self.config.model.freeze)
        return make_trainable(model, self.config.optimizer, total_steps=10)

    def roll_out(self, model: VisionLanguageModel, layout: ParallelLayout) -> RolloutBatch:
        """One step's rollouts, under a guidance mask where the recipe says so."""
        sizes, allowed = family_of(self.hf_config).parse_architecture(self.hf_config).text, None
        if sizes.num_experts and self.config.routing.guidance == "modality":
            allowed = torch.ones(len(sizes.moe_layers), 2, sizes.num_experts, dtype=torch.bool)
            allowed[:, 0, 0] = allowed[:, 1, 1] = False
        rollout = self.config.rollout
        return collect_rollouts(
            model, layout, StepRows(self.rows, first_stream=0), self.processing,
            rollout_settings(self.config, self.processing, allowed), judge_by_length, rollout.group_size,
            rollout.prompts_per_forward,
        )  # fmt: skip

    def accumulate(self, trained: TrainableModel, layout: ParallelLayout, rollouts: RolloutBatch) -> None:
        """Forward and backward of the update."""
        advantage_B = group_advantages(rollouts.reward_B, rollouts.group_size, True).advantage_B
        accumulate_gradients(trained, layout, rollouts, advantage_B, UpdateSettings.of(self.config))


def judge_by_length(text: str, question: Question) -> Judgement:
    """Rewards that differ."""
    return Judgement(reward=float(len(text) % 3), accuracy=0.0, format=0.0)


def write_small_run(folder: Path, family: Family = "internvl", experts: bool = True, **settings: Any) -> SmallRun:
    """`settings` replace sections of SETTINGS key by key."""
    assets = folder / "assets"
    if family == "internvl":
        build_tiny_internvl(assets, INTERNVL, seed=0)
    else:
        build_tiny_qwen2_vl(assets, QWEN2_VL, seed=0)
    if experts:
        config = upcycled_config(json.loads((assets / "config.json").read_text()), UpcycleSettings())
        (assets / "config.json").write_text(json.dumps(config))
    return small_run(folder, **settings)


def small_run(folder: Path, **settings: Any) -> SmallRun:
    """Of a folder that `write_small_run` filled."""
    hf_config = json.loads((folder / "assets" / "config.json").read_text())
    processing = family_of(hf_config).processing.from_folder(folder / "assets")
    merged = {
        key: {**value, **settings.pop(key, {})} if isinstance(value, dict) else value for key, value in SETTINGS.items()
    }
    if family_of(hf_config).parse_architecture(hf_config).text.num_experts is None:
        merged |= {"method": "grpo", "routing": {"guidance": "none"}, "losses": {"gate_coefficient": 0.0}}
    config = RunConfig.model_validate(merged | settings)
    rows = make_rows(folder, processing, config.training.prompts_per_step)
    return SmallRun(folder, hf_config, config, processing, rows)


def make_rows(folder: Path, processing: Processing, count: int) -> list[EncodedRow]:
    """Prompts with one picture each; the last one's question is longer, so the others are padded."""
    generator = np.random.default_rng(0)
    rows = []
    for index in range(count):
        path = folder / f"picture_{index}.png"
        if not path.exists():
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        problem = "How many?" if index < count - 1 else "How many 0s are there? Count them."
        rows.append(Row(f"row-{index}", problem, (), "A", "test", (VisualFiles((path,), is_video=False),)))
    return encode_rows(rows, processing)
