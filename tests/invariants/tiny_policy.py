"""A tiny upcycled InternVL and the smallest step with everything in it: what all invariants are checked on.

Four MoE layers of width 32, 8 experts top-2, router weights drawn with standard deviation 0.3 and experts that differ
as much as unrelated ones, so that which expert is chosen moves every log-probability.  The rows mix text-only prompts,
one image and several images; their lengths differ.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import megatron_moe_grpo.mcore  # noqa: F401  (the CPU platform, before anything of Megatron)
from megatron_moe_grpo.config.schema import LossConfig, OptimizerConfig, ParallelConfig
from megatron_moe_grpo.conversion import Converter
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder
from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.mcore.optimizer import TrainableModel, make_trainable
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.mcore.routing_context import SelectionPolicy
from megatron_moe_grpo.models.build import build_model
from megatron_moe_grpo.models.convert import load_megatron_state
from megatron_moe_grpo.models.hf_folder import copy_assets, read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.internvl.tiny import TinySizes, build_tiny_internvl
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.models.upcycle import UpcycleSettings, upcycle_state
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rewards.judge import Judgement, Question
from megatron_moe_grpo.rollout.collect import StepRows, collect_rollouts
from megatron_moe_grpo.rollout.decode import DecodeSettings
from megatron_moe_grpo.rollout.prompts import EncodedRow, encode_rows
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.routing.trace import RouteMode
from megatron_moe_grpo.training.update_batch import UpdateSettings

SIZES = TinySizes(
    image_size=16,
    patch_size=4,
    vision_hidden_size=16,
    vision_layers=1,
    vision_heads=2,
    hidden_size=32,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn_size=24,
    max_positions=128,
    initializer_std=0.07,
)
ROUTING_MATTERS = UpcycleSettings(noise_scale=1.0, router_init_std=0.3, seed=1)
NUM_EXPERTS, NUM_ACTIVE = ROUTING_MATTERS.num_experts, ROUTING_MATTERS.num_active
GROUP_SIZE = 3
MAX_NEW_TOKENS = 3
POLICY = SelectionPolicy(guidance="modality", seed=11)
# One row alone is the longest; text-only rows stand in the first half, so that one of two data ranks sees no image.
PROBLEMS = (("How many 0s are there?", 0), ("Which?", 0), ("Which is the largest digit?", 2), ("How many?", 1))


def write_policy(
    folder: Path,
    settings: UpcycleSettings = ROUTING_MATTERS,
    ties_embeddings: bool = False,
    sizes: TinySizes = SIZES,
) -> Path:
    """`folder`/moe, a Hugging Face folder of the upcycled model, made from `folder`/dense."""
    dense, moe = folder / "dense", folder / "moe"
    build_tiny_internvl(dense, sizes, seed=0)
    state, config = read_hf_state(dense), read_hf_config(dense)
    if ties_embeddings:
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
        del state["language_model.lm_head.weight"]
    state, config = upcycle_state(state, config, settings)
    write_hf_folder(moe, state, config, assets=dense)
    return moe


def write_mixed_policy(folder: Path, routed_layers: str) -> Path:
    """As `write_policy`, of 8 layers of which 4 have experts: L is 4, as everywhere here."""
    sizes, settings = replace(SIZES, layers=2 * SIZES.layers), replace(ROUTING_MATTERS, layers=routed_layers)
    assert len(settings.chosen_layers(sizes.layers)) == SIZES.layers
    return write_policy(folder, settings, sizes=sizes)


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Seeded noise: no two pictures look alike to any vision tower."""
    generator = np.random.default_rng(5)
    paths = [folder / f"picture_{index}.png" for index in range(count)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return paths


def make_rows(pictures: Sequence[Path], processing: Processing) -> list[EncodedRow]:
    """One row for each of PROBLEMS, every image another picture."""
    rows, unused = [], iter(pictures)
    for index, (problem, num_images) in enumerate(PROBLEMS):
        images = tuple(VisualFiles((next(unused),), is_video=False) for _ in range(num_images))
        rows.append(Row(f"row-{index}", problem, ("A. 0", "B. 1"), "A", "test", images))
    return encode_rows(rows, processing)


def load_policy(folder: Path, recompute: str = "none") -> VisionLanguageModel:
    """The Hugging Face folder as an unsharded Megatron model; needs process groups of one process."""
    config = read_hf_config(folder)
    parallel = ParallelConfig(recompute=recompute)
    model = build_model(config, parallel, "fp32")
    load_megatron_state(model, Converter(family_of(config).weight_map(config)).to_megatron(SafetensorsFolder(folder)))
    return model


def build_shard(folder: Path, parallel: ParallelConfig, layout: ParallelLayout) -> VisionLanguageModel:
    """This rank's part of the model of `folder`/config.json, with weights that are still random."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return build_model(config, parallel, "fp32", layout.is_first_stage, layout.is_last_stage)


def write_assets(policy: Path, out: Path) -> Path:
    """config.json and tokenizer files of `policy`, as a checkpoint carries them."""
    out.mkdir(parents=True)
    (out / "config.json").write_bytes((policy / "config.json").read_bytes())
    copy_assets(policy, out)
    return out


def trainable(model: VisionLanguageModel, learning_rate: float = 1e-2) -> TrainableModel:
    """The model in Megatron's wrapper; gradients are never clipped, so that they can be compared."""
    settings = OptimizerConfig(learning_rate=learning_rate, schedule="constant", clip_grad_norm=1e9)
    return make_trainable(model, settings, total_steps=10)


def guidance() -> Tensor:
    """is_allowed_L2N that closes two experts of each layer to text and two others to vision."""
    is_allowed_L2N = torch.ones(SIZES.layers, 2, NUM_EXPERTS, dtype=torch.bool)
    for layer in range(SIZES.layers):
        is_allowed_L2N[layer, 0, [layer, layer + 1]] = False
        is_allowed_L2N[layer, 1, [layer + 3, layer + 4]] = False
    return is_allowed_L2N


def exploring(
    processing: Processing,
    explores_prompt: bool = True,
    token_temperature: float = 1.0,
    policy: SelectionPolicy = POLICY,
) -> DecodeSettings:
    """Sampled experts under the modality mask.  Six tokens are open, the end of turn among them: lengths differ."""
    open_ids = {processing.eos_token_id, *processing.tokenizer.encode("ABCDE", add_special_tokens=False)}
    closed = sorted(set(range(processing.tokenizer.vocab_size)) - open_ids)
    return DecodeSettings(
        mode=RouteMode.SAMPLE,
        policy=policy,
        max_new_tokens=MAX_NEW_TOKENS,
        end_token_id=processing.eos_token_id,
        suppressed_token_ids=torch.tensor(closed),
        token_temperature=token_temperature,
        explores_prompt=explores_prompt,
        is_allowed_L2N=guidance() if policy.guidance == "modality" else None,
    )


def varied_judge(response: str, question: Question) -> Judgement:
    """Any response has its own reward, so that groups have a signal without a trained model."""
    reward = sum((place + 1) * ord(letter) for place, letter in enumerate(response)) % 7 / 7
    return Judgement(reward, accuracy=reward, format=0.0)


def constant_judge(response: str, question: Question) -> Judgement:
    """No group has a signal."""
    return Judgement(1.0, accuracy=1.0, format=0.0)


def rare_judge(response: str, question: Question) -> Judgement:
    """Right is what begins with an A: most groups of an untrained model agree that they are wrong."""
    reward = float(response.startswith("A"))
    return Judgement(reward, accuracy=reward, format=0.0)


def update_settings(losses: LossConfig | None = None, **changes: object) -> UpdateSettings:
    """All three terms on, one micro-batch; `changes` replace fields."""
    values = {
        "losses": losses or LossConfig(load_balancing_coefficient=0.1),
        "policy": POLICY,
        "explores_prompt": True,
        "micro_batch_prompts": len(PROBLEMS),
        "has_recompute": False,
        "trusts_rollout_logprobs": True,
    }
    return UpdateSettings(**{**values, **changes})


@dataclass(frozen=True)
class Bench:
    """One process with a policy on it."""

    layout: ParallelLayout
    folder: Path
    processing: Processing
    rows: list[EncodedRow]

    def roll_out(
        self,
        model: VisionLanguageModel,
        settings: DecodeSettings | None = None,
        group_size: int = GROUP_SIZE,
        judge: Callable[[str, Question], Judgement] = varied_judge,
        prompts_per_forward: int = len(PROBLEMS),
        step_rows: StepRows | None = None,
    ) -> RolloutBatch:
        """G rollouts of every row, `exploring` unless said otherwise."""
        return collect_rollouts(
            model, self.layout, step_rows or StepRows(self.rows, first_stream=100), self.processing,
            settings or exploring(self.processing), judge, group_size, prompts_per_forward,
        )  # fmt: skip


def gradients(trained: TrainableModel) -> dict[str, Tensor]:
    """The gradient of every parameter by name, copied out of Megatron's buffers; one process only."""
    return {name: parameter.main_grad.clone() for name, parameter in trained.module.named_parameters()}


def relative_gap(got: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected magnitude: 0 for equal tensors, 1 for a gradient that is missing."""
    scale = max(float(expected.abs().max()), 1e-12)
    return float((got - expected).abs().max()) / scale
